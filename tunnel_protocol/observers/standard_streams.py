"""Makes sure that file descriptors 0, 1 and 2 are open before any other file is opened.

If a process is started with one of them closed, a socket or file gets its number: libraries would print into it, and libuv
aborts when it is asked to close it.
"""

import os
import sys
import threading


def make_safe() -> None:
    """Open the null device for each closed standard descriptor, and switch off gRPC's own log.

    Call this before anything else. Raises OSError if the null device cannot be opened.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
            os.set_inheritable(number, True)
    # gRPC's C core writes a line per failed TLS handshake to standard error and blocks while the pipe is full, so any client
    # could fill the disk or stop the process. The variable must be set before gRPC is loaded.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    # Python sets these to None if the descriptor was closed at start.
    if sys.stdin is None:
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 - lives as long as the process
    if sys.stdout is None:
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115


def say(text: str, timeout_s: float = 1.0) -> None:
    """Write a line to standard error. Never raises, and takes at most `timeout_s` seconds."""
    thread = threading.Thread(target=_write, args=(text,), name="stderr", daemon=True)
    thread.start()
    thread.join(timeout_s)


def _write(text: str) -> None:
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except (OSError, ValueError):
        # Standard error is not usable: there is no other place to report to.
        return
