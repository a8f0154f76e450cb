"""What becomes of the log's reader is no business of requests, workers and the end of the process (issue 17, row 3)."""

import fcntl
import os
import resource
import time
from pathlib import Path

import pytest

from router.testing import System
from support.receipts import MODEL
from support.waiting import wait_until


def dropped(system: System, log: str = "log") -> float:
    return system.metrics()[f'stargate_log_lines_dropped_total{{log="{log}"}}']


def serves(system: System, requests: int) -> None:
    assert {system.chat(MODEL, "hello").status for _ in range(requests)} == {200}
    other = system.add_worker("other-model")
    assert system.chat("other-model", "hello").status == 200
    assert system.request("GET", "/readyz").status == 200
    assert other.process.exit_code is None


@pytest.mark.parametrize("reader", ["gone", "blocked"])
def test_a_reader_that_is_gone_or_does_not_read_stops_nothing(reader: str, tmp_path: Path) -> None:
    pipe = tmp_path / "router.log"
    os.mkfifo(pipe)
    reading = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    fcntl.fcntl(reading, fcntl.F_SETPIPE_SZ, 4096)
    with System.start("--access-log", directory=tmp_path) as system:
        system.add_worker(MODEL)
        if reader == "gone":
            os.close(reading)
        serves(system, 6)
        if reader == "gone":
            assert dropped(system) >= 12
        began = time.monotonic()
        assert system.router.stop() == 0
        assert time.monotonic() - began < 8
    if reader == "blocked":
        assert os.read(reading, 1 << 20).startswith(b"20")
        os.close(reading)


def test_a_log_file_that_cannot_grow_costs_lines_that_are_told_afterwards(tmp_path: Path) -> None:
    with System.start("--access-log", directory=tmp_path) as system:
        system.add_worker(MODEL)
        before = system.router.log()
        soft, hard = resource.prlimit(system.router.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(system.router.pid, resource.RLIMIT_FSIZE, (len(before.encode()) + 10, hard))
        serves(system, 6)
        wait_until(lambda: dropped(system) >= 12)
        resource.prlimit(system.router.pid, resource.RLIMIT_FSIZE, (soft, hard))
        wait_until(lambda: "log lines were dropped dropped=" in system.router.log())
        assert system.router.stop() == 0
        assert "graceful shutdown complete" in system.router.log()


def test_a_key_log_on_a_full_disk_costs_secrets_and_no_worker(tmp_path: Path) -> None:
    with System.start("--quic-keylog-path=/dev/full", directory=tmp_path) as system:
        system.add_worker(MODEL)
        assert system.chat(MODEL, "hello").status == 200
        assert dropped(system, "key_log") == 4
        system.router.until_logged("key log cannot be written; secrets are lost")
        assert system.router.stop() == 0
