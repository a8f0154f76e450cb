"""Configuration, certificates, keys and secrets from disk: bounded in size and in time, whatever the path leads to.

A path may lead to a FIFO, to an endless device or to a file system that has stopped answering. Only regular files are read, at
most as much as the caller allows; and because a read of a dead network file system cannot be interrupted, it happens in a thread
of its own that is given up after a deadline. Such threads are daemons: the process can end while they hang.
"""

import asyncio
import os
import stat
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import TypeVar

from tunnel_protocol.limit import Limit

T = TypeVar("T")

READ_DEADLINE_S = 5.0
"""How long one read may take; seconds."""

HANGING_READS = Limit("files.hanging_reads", pieces=4)
"""Threads of one reader that wait for a file system; further reads fail at once."""

_BLOCK_BYTES = 1 << 18


class SmallFileError(Exception):
    """A file cannot be used. `path` is its path as configured, `reason` what is wrong, without the path.

    `error_number` is the errno of the operating system, None if it was not the operating system that refused.
    """

    def __init__(self, path: str, reason: str, error_number: int | None = None) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason
        self.error_number = error_number


class FileTooLargeError(SmallFileError):
    """The file has more bytes than the limit allows. `limit_bytes` tells how many that are."""

    def __init__(self, path: str, limit_bytes: int) -> None:
        super().__init__(path, f"larger than {limit_bytes} bytes")
        self.limit_bytes = limit_bytes


class HangingReadError(SmallFileError):
    """The read did not end within its deadline, or too many earlier ones have not ended yet."""


def read_small_file(path: str | Path, limit: Limit) -> bytes:
    """The content of a regular file (links are followed) of at most `limit.bytes` bytes. Raises `SmallFileError`.

    Blocks as long as the file system does; call it through a `FileReader`.
    """
    most = limit.bytes or 0
    name = str(path)
    try:
        # Without O_NONBLOCK opening a FIFO would wait for its writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except OSError as error:
        raise SmallFileError(name, error.strerror or "cannot be opened", error.errno) from error
    except ValueError as error:
        raise SmallFileError(name, str(error)) from error
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            what = "Is a directory" if stat.S_ISDIR(mode) else "not a regular file"
            raise SmallFileError(name, what)
        content = bytearray()
        while len(content) <= most:
            block = os.read(descriptor, min(_BLOCK_BYTES, most + 1 - len(content)))
            if not block:
                return bytes(content)
            content += block
    except OSError as error:
        raise SmallFileError(name, error.strerror or "cannot be read", error.errno) from error
    finally:
        os.close(descriptor)
    raise FileTooLargeError(name, most)


class FileReader:
    """Runs work that waits for a file system, each time in a daemon thread, and gives up after `deadline_s`."""

    def __init__(self, deadline_s: float = READ_DEADLINE_S) -> None:
        self._deadline_s = deadline_s
        self._lock = threading.Lock()
        self._running = 0

    @property
    def running(self) -> int:
        """Threads that have not ended, given up ones included."""
        return self._running

    def run(self, path: str, work: Callable[[], T]) -> T:
        """The result of `work`, which concerns `path`; blocks the caller. Raises what it raises, and `HangingReadError`."""
        future = self._start(path, work)
        try:
            return future.result(self._deadline_s)
        except TimeoutError:
            if future.done():
                raise
            raise self._late(path) from None

    async def result(self, path: str, work: Callable[[], T]) -> T:
        """As `run`, without blocking the event loop."""
        future = self._start(path, work)
        wrapped = asyncio.wrap_future(future)
        try:
            await asyncio.wait([wrapped], timeout=self._deadline_s)
            if not wrapped.done():
                raise self._late(path)
            return wrapped.result()
        finally:
            # Nobody asks for a result that comes too late.
            wrapped.cancel()

    def _start(self, path: str, work: Callable[[], T]) -> "Future[T]":
        with self._lock:
            if self._running >= (HANGING_READS.pieces or 0):
                raise HangingReadError(path, f"{self._running} earlier reads have not ended")
            self._running += 1
        future: Future[T] = Future()
        future.set_running_or_notify_cancel()
        thread = threading.Thread(target=self._body, args=(future, work), name=f"read {path}"[:60], daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            with self._lock:
                self._running -= 1
            raise SmallFileError(path, f"no thread to read it: {error}") from error
        return future

    def _body(self, future: "Future[T]", work: Callable[[], T]) -> None:
        result: T
        try:
            result = work()
        except BaseException as error:  # noqa: BLE001 - whatever it is belongs to the caller
            self._ended()
            future.set_exception(error)
        else:
            self._ended()
            future.set_result(result)

    def _ended(self) -> None:
        with self._lock:
            self._running -= 1

    def _late(self, path: str) -> HangingReadError:
        return HangingReadError(path, f"reading took longer than {self._deadline_s:g} s")
