"""Lines for observers: in order, never a wait for the caller, never an error; what was lost is told."""

import fcntl
import os
import resource
import select
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.waiting import wait_until
from tunnel_protocol.limit import Limit
from tunnel_protocol.observers.line_writer import LINES, LineWriter


def told(count: int) -> str:
    return f"lost {count}"


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    yield reader, writer
    for descriptor in (reader, writer):
        try:
            os.close(descriptor)
        except OSError:
            continue


def read_while(reader: int, wanted: Callable[[bytes], bool], within_s: float = 20) -> bytes:
    found, end = b"", time.monotonic() + within_s
    while wanted(found):
        assert select.select([reader], [], [], max(0.0, end - time.monotonic()))[0], found[-200:]
        piece = os.read(reader, 65_536)
        assert piece
        found += piece
    return found


def read_until(reader: int, end: bytes) -> bytes:
    return read_while(reader, lambda found: not found.endswith(end))


def told_lost(found: bytes) -> list[int]:
    return [int(line.removeprefix(b"lost ")) for line in found.split(b"\n")[:-1] if line.startswith(b"lost ")]


def test_lines_come_out_in_order_and_a_flush_waits_for_them(tmp_path: Path) -> None:
    writer = LineWriter(tmp_path / "log", told, name="log")
    for number in range(5_000):
        writer.write(f"line {number}")
    assert writer.flush(20)
    assert (tmp_path / "log").read_text().splitlines() == [f"line {number}" for number in range(5_000)]
    assert (writer.dropped, writer.queued_bytes) == (0, 0)
    assert writer.close(20)


@settings(max_examples=30, deadline=None)
@given(lines=st.lists(st.text(st.characters(exclude_characters="\n"), max_size=40), max_size=20))
def test_any_text_is_written_lone_surrogates_as_their_escapes(
    lines: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("lines") / "log"
    writer = LineWriter(path, told, name="log")
    for line in lines:
        writer.write(line)
    assert writer.close(20)
    assert path.read_bytes() == b"".join(line.encode("utf-8", "backslashreplace") + b"\n" for line in lines)


def test_a_blocked_pipe_costs_lines_and_nobody_waits(pipe: tuple[int, int]) -> None:
    reader, descriptor = pipe
    writer = LineWriter(descriptor, told, name="log")
    assert LINES.bytes is not None
    for _ in range(2_000):
        writer.write("x" * 4_000)  # 8 MB
    assert LINES.bytes - 5_000 < writer.queued_bytes <= LINES.bytes
    assert 800 < writer.dropped < 1_000
    assert not writer.flush(0.01)
    # Told in one line, or in several if the thread began when some were lost already.
    found = read_while(reader, lambda found: sum(told_lost(found)) < writer.dropped or not found.endswith(b"\n"))
    assert sum(told_lost(found)) == writer.dropped
    assert found.count(b"\n") == 2_000 - writer.dropped + len(told_lost(found))
    writer.write("goes on")
    assert read_until(reader, b"\n") == b"goes on\n"
    assert writer.close(20)


def test_pieces_are_bounded_too(pipe: tuple[int, int]) -> None:
    reader, descriptor = pipe
    writer = LineWriter(descriptor, told, name="log", limit=Limit("test", bytes=1 << 20, pieces=10))
    writer.write("y" * 100_000)
    for _ in range(20):
        writer.write("")
    assert writer.dropped == 11
    os.close(reader)
    assert writer.close(20)


def test_a_pipe_that_lags_and_does_not_block_loses_nothing(pipe: tuple[int, int]) -> None:
    reader, descriptor = pipe
    fcntl.fcntl(descriptor, fcntl.F_SETFL, fcntl.fcntl(descriptor, fcntl.F_GETFL) | os.O_NONBLOCK)
    writer = LineWriter(descriptor, told, name="log")
    for number in range(1_000):
        writer.write(f"{number:>999}")
    found = read_until(reader, b"999\n").decode().splitlines()
    assert [int(line) for line in found] == list(range(1_000))
    assert writer.dropped == 0
    assert writer.close(20)


def test_a_reader_that_is_gone_costs_lines_and_one_report(pipe: tuple[int, int]) -> None:
    reader, descriptor = pipe
    os.close(reader)
    errors: list[OSError] = []
    writer = LineWriter(descriptor, told, name="log", failed=errors.append)
    for number in range(100):
        writer.write(str(number))
        assert writer.flush(20)
    assert writer.dropped == 100
    assert [type(error) for error in errors] == [BrokenPipeError]
    assert writer.close(20)


def test_a_full_disk_costs_lines_and_nothing_else() -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    writer = LineWriter(full, told, name="log")
    writer.write("a")
    writer.write("b")
    assert writer.flush(20)
    assert writer.dropped == 2
    assert writer.close(20)
    os.close(full)


def test_what_a_full_file_lost_is_told_when_it_can_grow_again(tmp_path: Path) -> None:
    path = tmp_path / "log"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    writer = LineWriter(path, told, name="log")
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
        writer.write("first")
        writer.write("second")
        assert writer.flush(20)
        assert writer.dropped == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    wait_until(lambda: b"lost 1\n" in path.read_bytes())
    writer.write("third")
    assert writer.close(20)
    assert path.read_text().splitlines() == ["first", "seco", "lost 1", "third"]


def test_a_closed_descriptor_costs_lines_and_nothing_else(pipe: tuple[int, int]) -> None:
    _, descriptor = pipe
    os.close(descriptor)
    writer = LineWriter(descriptor, told, name="log")
    writer.write("a")
    assert writer.close(20)
    assert writer.dropped == 1


def test_a_file_is_opened_again_on_request_and_the_old_one_kept_if_that_fails(tmp_path: Path) -> None:
    errors: list[OSError] = []
    directory = tmp_path / "logs"
    directory.mkdir()
    path = directory / "log"
    writer = LineWriter(path, told, name="log", failed=errors.append)
    writer.write("one")
    assert writer.flush(20)
    path.rename(directory / "log.1")
    writer.reopen()
    wait_until(path.exists)
    writer.write("two")
    assert writer.flush(20)
    directory.rename(tmp_path / "moved")
    writer.reopen()
    wait_until(lambda: bool(errors))
    writer.write("three")
    assert writer.close(20)
    assert (tmp_path / "moved" / "log.1").read_text() == "one\n"
    assert (tmp_path / "moved" / "log").read_text() == "two\nthree\n"


def test_what_cannot_be_opened_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        LineWriter(tmp_path / "none" / "log", told, name="log")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="No such device"):
        LineWriter(tmp_path / "pipe", told, name="log")


def test_closing_twice_and_writing_afterwards_do_no_harm(tmp_path: Path) -> None:
    writer = LineWriter(tmp_path / "log", told, name="log")
    assert writer.close()
    assert writer.close()
    writer.write("late")
    assert writer.dropped == 1


def test_lines_of_many_threads_are_all_there(tmp_path: Path) -> None:
    writer = LineWriter(tmp_path / "log", told, name="log")

    def work(name: int) -> None:
        for number in range(500):
            writer.write(f"{name} {number}")

    threads = [threading.Thread(target=work, args=(name,)) for name in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert writer.close(20)
    lines = (tmp_path / "log").read_text().splitlines()
    for name in range(8):
        assert [line for line in lines if line.startswith(f"{name} ")] == [f"{name} {number}" for number in range(500)]


def test_reminders_are_written_until_there_are_none(tmp_path: Path) -> None:
    left = ["two", "one"]
    writer = LineWriter(
        tmp_path / "log", told, name="log", reminders=lambda: ([left.pop()], bool(left)) if left else ([], False)
    )
    writer.remind()
    wait_until(lambda: (tmp_path / "log").read_text() == "one\ntwo\n")
    assert writer.close(20)


def test_writers_that_share_a_pipe_write_whole_lines(pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    reader, target = pipe
    writes: list[bytes] = []
    write = os.write

    def noted(descriptor: int, data: bytes) -> int:
        if descriptor == target:
            writes.append(bytes(data))
        return write(descriptor, data)

    monkeypatch.setattr(os, "write", noted)
    writer = LineWriter(target, told, name="log", shared=True)
    lines = ["x" * size for size in (1_000, 3_000, 90, 2 * select.PIPE_BUF, 10, select.PIPE_BUF - 1, 1)]
    with writer._lock:  # all leave in one turn of the thread
        for line in lines:
            writer.write(line)
    assert writer.close(20)
    assert "".join(one.decode() for one in writes) == "".join(f"{line}\n" for line in lines)
    assert all(one.endswith(b"\n") for one in writes)
    assert [len(one) for one in writes if one.count(b"\n") > 1 and len(one) > select.PIPE_BUF] == []
    assert read_while(reader, lambda found: found.count(b"\n") < len(lines))
