"""`python -m benchmarks fleet` with three workers: real processes, a real restart."""

import json

import pytest

from benchmarks import fleet

SHORT = ["--seconds", "0.5", "--settle-s", "0.1"]


def test_three_workers_become_routable_and_again_after_a_restart(tmp_path, capsys):
    fleet.run(["--workers", "3", *SHORT, "--json", str(tmp_path / "figures.json")])
    alone, full = json.loads((tmp_path / "figures.json").read_bytes())
    assert (alone["workers"], full["workers"]) == (0, 3)
    assert full["kib_per_worker"] is not None
    assert full["started_s"] > 0
    assert full["restarted_s"] > 0
    assert full["lost_handshakes"] == 0
    assert "restart s" in capsys.readouterr().out


def test_a_router_that_ends_is_an_error_with_its_log():
    with pytest.raises(SystemExit, match=r"(?s)the router has ended.*no such router"):
        fleet.run(["--workers", "3", *SHORT, "--router", "broken=sh -c 'echo no such router'"])


def test_workers_that_do_not_become_routable_in_time_are_an_error():
    with pytest.raises(
        SystemExit,
        match=r"the simulator used \d+% of a core and the router \d+%; not within 0\.06\d* s: 3 routable workers",
    ):
        fleet.run(["--workers", "3", *SHORT, "--timeout-s", "0.002", "--start-per-s", "50"])
