"""Descriptors 0, 1 and 2 are there before anything else is opened.

A process that was started with one of them closed would get a socket or a file under that number: libraries print into it,
and libuv aborts when it is asked to close it.
"""

import os
import sys
import threading


def make_safe() -> None:
    """Put the null device where a standard descriptor is closed, and keep libraries from printing for strangers.

    To be called first of all; raises OSError without a null device.
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
    # gRPC's C core prints a line per failed TLS handshake on standard error, and waits there for its reader: strangers
    # could fill the disk, or stop the process with a pipe that nobody reads. The variable counts before gRPC is loaded.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    # Python leaves None for a descriptor that it found closed.
    if sys.stdin is None:
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 - lives as long as the process
    if sys.stdout is None:
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115


def say(text: str, timeout_s: float = 1.0) -> None:
    """A last word on standard error. Neither raises nor takes longer than this, whatever has become of it."""
    thread = threading.Thread(target=_write, args=(text,), name="stderr", daemon=True)
    thread.start()
    thread.join(timeout_s)


def _write(text: str) -> None:
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except (OSError, ValueError):
        # There is nobody left to be told.
        return
