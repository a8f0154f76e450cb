"""Reads configuration, certificates, keys and secrets from disk, bounded in size and in time.

A path may refer to a FIFO, to an endless device or to a file system that does not answer. Only regular files are read, up to
the size the caller allows. A read of a network file system that does not answer cannot be interrupted, so each read has its
own thread, which is abandoned after a deadline. These threads are daemons: the process can exit while they hang.
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
"""Longest time of one read in seconds."""

HANGING_READS = Limit("files.hanging_reads", pieces=4)
"""Threads of one `FileReader` that wait for a file system; above it further reads fail at once."""

_BLOCK_BYTES = 1 << 18


class SmallFileError(Exception):
    """A file cannot be used. `path` is its path as configured, `reason` the cause without the path.

    `error_number` is the operating system's errno, None if the error has another cause.
    """

    def __init__(self, path: str, reason: str, error_number: int | None = None) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason
        self.error_number = error_number


class FileTooLargeError(SmallFileError):
    """The file is larger than `limit_bytes` bytes."""

    def __init__(self, path: str, limit_bytes: int) -> None:
        super().__init__(path, f"larger than {limit_bytes} bytes")
        self.limit_bytes = limit_bytes


class HangingReadError(SmallFileError):
    """The read did not end within its deadline, or too many earlier reads have not ended yet."""


def read_small_file(path: str | Path, limit: Limit) -> bytes:
    """The content of a regular file (links are followed) of at most `limit.bytes` bytes. Raises `SmallFileError`.

    May block without limit of time; call it through a `FileReader`.
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
    """Runs functions that wait for a file system, each in a daemon thread, and abandons them after `deadline_s` seconds."""

    def __init__(self, deadline_s: float = READ_DEADLINE_S) -> None:
        self._deadline_s = deadline_s
        self._lock = threading.Lock()
        self._running = 0

    @property
    def running(self) -> int:
        """Number of threads that have not ended, including abandoned ones."""
        return self._running

    def run(self, path: str, work: Callable[[], T]) -> T:
        """The result of `work`, which reads `path`; blocks the caller. Raises what `work` raises, and `HangingReadError`."""
        future = self._start(path, work)
        try:
            return future.result(self._deadline_s)
        except TimeoutError:
            if future.done():
                raise
            raise self._late(path) from None

    async def result(self, path: str, work: Callable[[], T]) -> T:
        """Like `run`, without blocking the event loop."""
        future = self._start(path, work)
        wrapped = asyncio.wrap_future(future)
        try:
            await asyncio.wait([wrapped], timeout=self._deadline_s)
            if not wrapped.done():
                raise self._late(path)
            return wrapped.result()
        finally:
            # A result after the deadline is discarded.
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
        except BaseException as error:  # noqa: BLE001 - raised again in the caller
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
