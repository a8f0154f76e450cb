"""The reference's worker under load, on good networks and bad ones: every request is answered with its own bytes.

`TUNNEL_LOAD_S` in the environment sets for how long.
"""

import pytest

from support.tunnel_load import BAD, LOAD_S, MOVING, NETEM, assert_all_was_well, load_in_a_process, why_no_netem

pytestmark = [pytest.mark.interop, pytest.mark.timeout(120 + 2 * LOAD_S)]


@pytest.mark.parametrize("direct", [False, True])
def test_a_good_network_in_a_namespace_of_its_own(pylon, direct):
    assert_all_was_well(load_in_a_process(LOAD_S, pylon=pylon, before="true", direct=direct))


def test_a_network_that_loses_repeats_and_reorders_costs_time_only(pylon):
    report = load_in_a_process(LOAD_S, pylon=pylon, weather=BAD)
    assert_all_was_well(report)
    assert min(report["relay"][what] for what in ("lost", "duplicated", "delayed")) > 10


def test_a_worker_behind_a_nat_that_forgets_keeps_its_tunnel(pylon):
    report = load_in_a_process(LOAD_S, pylon=pylon, weather=MOVING)
    assert_all_was_well(report)
    assert report["relay"]["moves"] >= 3


@pytest.mark.parametrize("direct", [False, True])
def test_the_kernels_own_bad_network_costs_time_only(pylon, direct):
    if missing := why_no_netem():
        pytest.skip(missing)
    netem = f"tc qdisc add dev lo root netem {NETEM}"
    assert_all_was_well(load_in_a_process(LOAD_S, pylon=pylon, before=netem, direct=direct))
