"""One reader of small files: regular, bounded in bytes and time, given up in a thread that holds nobody."""

import os
import threading
from pathlib import Path

import pytest

from tunnel_protocol.limit import Limit
from tunnel_protocol.small_file import (
    HANGING_READS,
    FileReader,
    FileTooLargeError,
    HangingReadError,
    SmallFileError,
    read_small_file,
)

SMALL = Limit("test.small", bytes=10)


def test_a_file_of_exactly_the_limit_is_read_and_one_byte_more_is_not(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"x" * 10)
    assert read_small_file(path, SMALL) == b"x" * 10
    path.write_bytes(b"x" * 11)
    with pytest.raises(FileTooLargeError, match="larger than 10 bytes"):
        read_small_file(path, SMALL)


def test_what_is_no_regular_file_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", Path("/dev/zero"), tmp_path):
        with pytest.raises(SmallFileError, match=r"regular file|directory"):
            read_small_file(path, SMALL)


def test_the_operating_systems_reason_is_told(tmp_path: Path) -> None:
    with pytest.raises(SmallFileError, match="No such file") as caught:
        read_small_file(tmp_path / "none", SMALL)
    assert caught.value.error_number == 2
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(SmallFileError, match="symbolic links"):
        read_small_file(tmp_path / "loop", SMALL)
    with pytest.raises(SmallFileError, match="null"):
        read_small_file("a\0b", SMALL)


async def test_a_read_that_hangs_is_given_up_and_only_so_many_are_left_hanging() -> None:
    reader, released = FileReader(deadline_s=0.01), threading.Event()
    most = HANGING_READS.pieces or 0

    async def hang() -> None:
        await reader.result("p", lambda: released.wait(30))

    for _ in range(most):
        with pytest.raises(HangingReadError, match=r"longer than 0\.01 s"):
            await hang()
    with pytest.raises(HangingReadError, match="earlier reads have not ended"):
        await hang()
    with pytest.raises(HangingReadError, match="earlier reads have not ended"):
        reader.run("p", lambda: 1)
    released.set()
    while reader.running:  # the suite's time limit bounds this
        pass
    assert FileReader().run("p", lambda: 5) == 5


async def test_what_the_work_raises_is_its_callers() -> None:
    def fail() -> int:
        raise TimeoutError("the disk's own")

    reader = FileReader()
    with pytest.raises(TimeoutError, match="the disk's own"):
        reader.run("p", fail)
    with pytest.raises(TimeoutError, match="the disk's own"):
        await reader.result("p", fail)
    with pytest.raises(HangingReadError):
        FileReader(deadline_s=0.01).run("p", lambda: threading.Event().wait(1))


def test_a_system_without_threads_is_told_and_no_place_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", fail)
    reader = FileReader()
    with pytest.raises(SmallFileError, match="no thread to read it"):
        reader.run("p", lambda: 1)
    assert reader.running == 0
