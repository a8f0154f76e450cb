"""Our worker under load on networks that lose, repeat, delay and reorder: every request is answered with its own bytes.

`TUNNEL_LOAD_S` in the environment sets for how long.
"""

import pytest

from support.tunnel_load import BAD, LOAD_S, MOVING, NETEM, assert_all_was_well, load_in_a_process, why_no_netem

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(120 + 2 * LOAD_S)]


def test_a_network_that_loses_repeats_and_reorders_costs_time_only():
    report = load_in_a_process(LOAD_S, weather=BAD)
    assert_all_was_well(report)
    assert min(report["relay"][what] for what in ("lost", "duplicated", "delayed")) > 10


def test_a_worker_behind_a_nat_that_forgets_keeps_its_tunnel():
    report = load_in_a_process(LOAD_S, weather=MOVING)
    assert_all_was_well(report)
    assert report["relay"]["moves"] >= 3


def test_the_kernels_own_bad_network_costs_time_only():
    if missing := why_no_netem():
        pytest.skip(missing)
    assert_all_was_well(load_in_a_process(LOAD_S, before=f"tc qdisc add dev lo root netem {NETEM}"))
