"""The fleet benchmark's command line, the descriptors and memory it asks for, and what it says of its own figures."""

import pytest

from benchmarks import fleet
from benchmarks.fleet import capacity
from benchmarks.fleet.capacity import Capacity
from benchmarks.fleet.report import Row, figures, table
from benchmarks.fleet.usage import Machine

PLENTY = Capacity(descriptors=1 << 20, memory_bytes=1 << 40)


def row(workers=100, router="router", **changes):
    values = {
        "cpu_s_per_s": 0.01 + workers * 0.0005,
        "simulator_s_per_s": 0.2,
        "idle_cpus": 0.5,
        "resident_bytes": (80 << 20) + workers * (200 << 10),
        "started_s": 2.0,
    }
    return Row(**{"router": router, "workers": workers, **values, **changes})


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--workers", "10,many"], "expected numbers"),
        (["--workers", "-1"], "0 or more"),
        (["--rounds", "0"], "greater than 0"),
        (["--seconds", "0"], "greater than 0"),
        (["--seconds", "inf"], "greater than 0"),
        (["--router", "/usr/bin/stargate"], "NAME=COMMAND"),
        (["--router", "name="], "NAME=COMMAND"),
        (["workers"], "unrecognized arguments"),
    ],
)
def test_a_wrong_option_is_refused_with_its_reason(words, text, capsys):
    with pytest.raises(SystemExit) as refused:
        fleet.run(words)
    assert refused.value.code == 2
    assert text in capsys.readouterr().err


def test_workers_that_do_not_fit_are_refused_before_anything_is_started(monkeypatch):
    monkeypatch.setattr(
        capacity.Capacity, "read", classmethod(lambda _: Capacity(descriptors=1_000, memory_bytes=None))
    )
    with pytest.raises(SystemExit, match="500 workers need 1128 descriptors; the limit is 1000"):
        fleet.run(["--workers", "10,500"])


def test_memory_is_checked_too():
    assert PLENTY.lacks(10_000) is None
    assert Capacity(descriptors=1 << 20, memory_bytes=None).lacks(10_000) is None
    assert "of memory; 1024 MiB are available" in (
        Capacity(descriptors=1 << 20, memory_bytes=1 << 30).lacks(10_000) or ""
    )


def test_what_this_machine_has_can_be_read():
    here = Capacity.read()
    assert here.descriptors > 0
    assert here.memory_bytes is None or here.memory_bytes > 0


def test_the_figures_are_per_worker_and_without_what_the_router_uses_alone():
    alone, full = figures([row(0), row(100)])
    assert (alone.cpu_us_per_worker, alone.kib_per_worker) == (None, None)
    assert full.cpu_us_per_worker == pytest.approx(500)
    assert full.kib_per_worker == pytest.approx(200)
    assert full.cpu_percent == pytest.approx(6)


def test_without_a_measurement_of_the_router_alone_nothing_is_said_per_worker():
    assert figures([row(100)])[0].cpu_us_per_worker is None


def test_several_rounds_give_their_medians_and_the_most_handshakes_lost():
    rounds = [row(10, restarted_s=s, lost_handshakes=lost) for s, lost in ((1.0, 0), (9.0, 3), (2.0, 1))]
    (found,) = figures(rounds)
    assert (found.restarted_s, found.lost_handshakes) == (2.0, 3)


def test_a_simulator_or_a_machine_at_its_limit_is_said():
    assert row().warnings() == []
    (found,) = figures([row(simulator_s_per_s=0.97), row(simulator_s_per_s=0.97, idle_cpus=0.01)])
    assert found.warnings == ["the simulator is the limit (97% of a core)", "the machine is busy (1% idle)"]
    assert "! the simulator is the limit" in table([found])
    assert row(restart_simulator_s_per_s=0.9).warnings() == [
        "the simulator is the limit of the restart (90% of a core)"
    ]


def test_the_table_compares_with_the_first_router():
    rows = [
        row(0, "a"),
        row(0, "b"),
        row(100, "a"),
        row(100, "b", cpu_s_per_s=0.11, restarted_s=1.5, lost_handshakes=0),
    ]
    lines = table(figures(rows)).splitlines()
    assert len(lines) == 5
    assert "2.00" in lines[4]
    assert lines[4].split()[-2:] == ["1.5", "0"]


def test_idle_time_is_a_share_of_all_time():
    assert Machine(30.0, 100.0).idle_since(Machine(20.0, 60.0)) == pytest.approx(0.25)
    assert Machine.now().idle_since(Machine(0.0, 0.0)) <= 1
