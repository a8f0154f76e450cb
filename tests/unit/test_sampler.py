"""Lines that somebody outside can cause: the first ones, and how many more there were."""

import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from router.telemetry.logging import set_up
from tunnel_protocol.observers.line_logger import LibraryLines
from tunnel_protocol.observers.line_writer import LineWriter
from tunnel_protocol.observers.sampler import INTERVAL_S, KINDS, LINES_OF_KIND, LINES_OF_SOURCE, SOURCES, Sampler


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_the_first_lines_of_a_source_are_shown_and_the_rest_is_counted() -> None:
    clock = Clock()
    sampler = Sampler(clock)
    assert sum(sampler.admits("refused", "10.0.0.1") for _ in range(1_000)) == LINES_OF_SOURCE.pieces == 20
    assert sampler.admits("refused", "10.0.0.2")
    assert sampler.admits("lost", "10.0.0.1")
    assert sampler.summaries() == ([], True)
    clock.now += INTERVAL_S
    assert sampler.summaries() == ([("refused", 980, 1)], False)
    assert sampler.admits("refused", "10.0.0.1")
    assert sampler.summaries() == ([], False)


def test_a_new_interval_begins_with_the_next_line_too() -> None:
    clock = Clock()
    sampler = Sampler(clock)
    for _ in range(25):
        sampler.admits("refused", "a")
    clock.now += INTERVAL_S
    assert sampler.admits("refused", "a")
    assert sampler.summaries() == ([("refused", 5, 1)], False)


def test_many_sources_together_are_bounded_too() -> None:
    sampler = Sampler(Clock())
    shown = sum(sampler.admits("refused", f"10.0.{number // 250}.{number % 250}") for number in range(1_000))
    assert shown == LINES_OF_KIND.pieces == 200


def test_sources_beyond_the_bound_share_one() -> None:
    clock = Clock()
    sampler = Sampler(clock)
    assert SOURCES.pieces is not None
    for number in range(SOURCES.pieces + 1_000):
        sampler.admits("refused", str(number))
    clock.now += INTERVAL_S
    ((summary,), _) = sampler.summaries()
    assert summary == ("refused", SOURCES.pieces + 1_000 - 200, SOURCES.pieces - 200 + 1)


def test_kinds_beyond_the_bound_share_one() -> None:
    clock = Clock()
    sampler = Sampler(clock)
    assert KINDS.pieces is not None
    shown = sum(sampler.admits(f"kind {number}", "a") for number in range(KINDS.pieces + 1_000))
    assert shown == KINDS.pieces + 20
    clock.now += INTERVAL_S
    assert sampler.summaries() == ([("(others)", 980, 1)], False)
    assert sum(sampler.admits(f"kind {number}", "a") for number in range(KINDS.pieces)) == KINDS.pieces


def test_old_kinds_make_way_for_new_ones() -> None:
    clock = Clock()
    sampler = Sampler(clock)
    for number in range(KINDS.pieces or 0):
        sampler.admits(f"kind {number}", "a")
    clock.now += INTERVAL_S
    assert sum(sampler.admits("new", "a") for _ in range(30)) == 20
    assert sampler.summaries() == ([], True)


@given(
    steps=st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 3), st.sampled_from([0.0, 0.1, 4.0, 11.0])), max_size=300
    )
)
def test_every_line_is_shown_or_counted(steps: list[tuple[int, int, float]]) -> None:
    clock = Clock()
    sampler = Sampler(clock)
    shown = counted = 0
    for kind, source, later in steps:
        clock.now += later
        shown += sampler.admits(str(kind), str(source))
        counted += sum(summary.lines for summary in sampler.summaries()[0])
    clock.now += INTERVAL_S
    due, more = sampler.summaries()
    assert shown + counted + sum(summary.lines for summary in due) == len(steps)
    assert not more


@pytest.fixture
def log(tmp_path: Path) -> Iterator[tuple[LineWriter, Path]]:
    handlers, level, hook = logging.getLogger().handlers[:], logging.getLogger().level, sys.unraisablehook
    path = tmp_path / "log"
    with path.open("w") as out:
        writer = set_up("text", {}, out, cache=False)
        assert writer is not None
        yield writer, path
        writer.close(20)
    structlog.reset_defaults()
    sys.unraisablehook = hook
    logging.captureWarnings(False)
    logging.getLogger().handlers[:] = handlers
    logging.getLogger().setLevel(level)


def test_one_peer_or_library_cannot_fill_the_log(log: tuple[LineWriter, Path]) -> None:
    writer, path = log
    for number in range(5_000):
        structlog.get_logger().warning("refused", peer=f"10.0.0.1:{number}")
        logging.getLogger("quic").warning("bad packet %d", number)
    structlog.get_logger().warning("refused", peer="[::1]:1")
    structlog.get_logger().info("welcome", peer="10.0.0.1:1")
    assert writer.flush(20)
    lines = path.read_text().splitlines()
    assert sum("10.0.0.1:" in line and "refused" in line for line in lines) == 20
    assert sum("bad packet" in line for line in lines) == 20
    assert 'refused peer="[::1]:1"' in lines[-2]
    assert "welcome" in lines[-1]
    assert not any("sample_kind" in line for line in lines)


def test_a_line_that_cannot_be_shown_says_so(log: tuple[LineWriter, Path]) -> None:
    class Bad:
        def __str__(self) -> str:
            raise RuntimeError("no")

    writer, path = log
    structlog.get_logger().warning("looked", at=Bad())
    LibraryLines().emit(logging.LogRecord("some", logging.WARNING, "x.py", 1, "two %d %d", (1,), None))
    assert writer.flush(20)
    first, second = path.read_text().splitlines()
    assert first.endswith(' WARN looked not_shown_because="RuntimeError"')
    assert second.endswith('WARN two %d %d logger="some" not_shown_because="TypeError"')
