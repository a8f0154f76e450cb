"""Descriptors 0 to 2 are safe before anything else is opened, and a last word on stderr holds nothing up."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CLOSED = ["<&-", ">&-", "2>&-", "<&- >&-", "<&- >&- 2>&-"]
SHOWS = """
from tunnel_protocol.observers import standard_streams
standard_streams.make_safe()
import os, socket, sys
print("out"); print("err", file=sys.stderr); sys.stdin.read()
sys.exit(socket.socket().fileno() < 3 or any(not os.get_inheritable(number) for number in range(3)))
"""


def shell(redirections: str, *words: str, timeout_s: float = 60) -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run(
        ["/bin/sh", "-c", f'exec "$@" {redirections}', "sh", sys.executable, *words],
        check=False,
        timeout=timeout_s,
        capture_output=True,
        stdin=subprocess.DEVNULL,
        cwd=ROOT,
    )


@pytest.mark.parametrize("redirections", CLOSED)
def test_closed_descriptors_are_the_null_device(redirections: str) -> None:
    ended = shell(redirections, "-c", SHOWS)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == (b"" if ">&-" in redirections.replace("2>&-", "") else b"out\n")


@pytest.mark.parametrize("redirections", CLOSED)
@pytest.mark.parametrize("program", ["router", "stargate_client"])
def test_programs_start_and_say_what_is_wrong_without_standard_streams(program: str, redirections: str) -> None:
    assert shell(redirections, "-m", program, "--nope").returncode == 2


def test_grpc_prints_nothing_for_strangers_unless_asked_to(monkeypatch: pytest.MonkeyPatch) -> None:
    shows = "import os; from tunnel_protocol.observers import standard_streams as s; s.make_safe(); print(os.environ['GRPC_VERBOSITY'])"
    monkeypatch.delenv("GRPC_VERBOSITY", raising=False)
    assert shell("", "-c", shows).stdout == b"NONE\n"
    monkeypatch.setenv("GRPC_VERBOSITY", "DEBUG")
    assert shell("", "-c", shows).stdout == b"DEBUG\n"


def test_help_may_be_read_in_part() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    ended = subprocess.run(
        [sys.executable, "-m", "router", "--help"],
        stdout=writer,
        stderr=subprocess.PIPE,
        check=False,
        timeout=60,
        cwd=ROOT,
    )
    os.close(writer)
    assert (ended.returncode, ended.stderr) == (0, b"")


SAYS = """
import os, sys
from tunnel_protocol.observers.standard_streams import say
say("x" * 1_000_000, timeout_s=0.05)
os._exit(7)
"""


def test_a_blocked_stderr_does_not_hold_back_the_end() -> None:
    child = subprocess.Popen([sys.executable, "-c", SAYS], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, cwd=ROOT)
    assert child.wait(60) == 7
    assert child.stderr is not None
    child.stderr.close()


def test_a_stderr_without_reader_does_not_fail_the_end() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    ended = subprocess.run([sys.executable, "-c", SAYS], stderr=writer, check=False, timeout=60, cwd=ROOT)
    os.close(writer)
    assert ended.returncode == 7
