"""Writes the lines of a log or key log in a thread, so that the caller never waits and gets no error.

If the reader is gone, the disk is full, or a pipe is slow or blocked, lines are lost, without other effects. Lines that do
not fit into the queue or cannot be written are counted; one line reports their number when writing works again.
"""

import os
import select
import threading
from collections.abc import Callable
from pathlib import Path

from tunnel_protocol.limit import Limit

LINES = Limit("observer.lines", bytes=4 << 20, pieces=20_000)
"""Lines held by one writer: queued or being written."""

_BATCH_S = 0.02
"""Minimum seconds between two writes, so that under load one write and one thread switch serve many lines."""
_RETRY_S = 0.25
"""Minimum seconds until the next write after a failed one."""
_REMIND_S = 1.0
"""Seconds between attempts of a writer without queued lines to report lost lines."""
_POLL_MS = 1_000


def _nothing() -> tuple[list[str], bool]:
    return [], False


class LineWriter:
    """Writes lines, in order, to a descriptor or to the end of a file. All methods may be called from any thread."""

    def __init__(
        self,
        target: int | Path,
        lost_line: Callable[[int], str],
        *,
        name: str,
        limit: Limit = LINES,
        failed: Callable[[OSError], None] | None = None,
        reminders: Callable[[], tuple[list[str], bool]] = _nothing,
        shared: bool = False,
    ) -> None:
        """`target` is a descriptor, which is not closed here, or a file, which is opened (raises OSError), again by `reopen`.

        `lost_line` makes the line that reports the number of lost lines. `failed` is called in the writer's thread with the first
        error of a series. After `remind`, `reminders` is called about once a second for further lines, until it returns False.
        `shared`: other processes write lines to the same pipe; a line of up to `PIPE_BUF` bytes stays whole there (pipe(7)).
        """
        self.name = name
        self._shared = shared
        self._path: Path | None = None if isinstance(target, int) else target
        self._descriptor: int = target if isinstance(target, int) else _open(target)
        self._lost_line = lost_line
        self._failed = failed
        self._reminders = reminders
        self._max_bytes: int = limit.bytes or 0
        self._max_pieces: int = limit.pieces or 0
        # Reentrant, because the garbage collector may run a finalizer that logs during `write`.
        self._lock = threading.RLock()
        self._lines: list[bytes] = []
        self._bytes = 0
        self._pieces = 0
        self._accepted = 0
        self._settled = 0
        self._dropped = 0
        self._lost_before = 0
        """Number of lines lost in failed writes and not reported yet; reported before the queued lines."""
        self._lost_after = 0
        """Number of lines lost because the queue was full and not reported yet; reported after the queued lines."""
        self._midline = False
        self._failing = False
        self._reopen = False
        self._remind = False
        self._closing = False
        self._waiters: list[tuple[int, threading.Lock]] = []
        self._asleep = False
        self._bell = threading.Lock()
        self._bell.acquire()
        self._rung = False
        self._thread: threading.Thread | None = None

    @property
    def dropped(self) -> int:
        """Number of lines lost since the start."""
        return self._dropped

    @property
    def queued_bytes(self) -> int:
        """Bytes of lines that are queued or being written."""
        return self._bytes

    def write(self, line: str) -> None:
        """Queue one line, given without newline; if the queue is full, count it as lost."""
        data = line.encode("utf-8", "backslashreplace") + b"\n"
        size = len(data)
        with self._lock:
            if self._closing or self._bytes + size > self._max_bytes or self._pieces >= self._max_pieces:
                self._dropped += 1
                self._lost_after += 1
                return
            self._lines.append(data)
            self._bytes += size
            self._pieces += 1
            self._accepted += 1
            if self._asleep:
                self._ring()
            elif self._thread is None:
                self._start()

    def remind(self) -> None:
        """Start to call `reminders`."""
        with self._lock:
            if not self._remind:
                self._remind = True
                self._ring()
                if self._thread is None:
                    self._start()

    def reopen(self) -> None:
        """Open the file again before the next line, after log rotation. If that fails, the old file stays in use."""
        if self._path is None:
            return
        with self._lock:
            self._reopen = True
            self._ring()
            if self._thread is None:
                self._start()

    def flush(self, timeout_s: float) -> bool:
        """Wait until all lines queued so far are written or lost; False if that takes longer than `timeout_s` seconds."""
        waiter = threading.Lock()
        waiter.acquire()
        with self._lock:
            if self._settled >= self._accepted:
                return True
            self._waiters.append((self._accepted, waiter))
            self._ring()
        return waiter.acquire(timeout=timeout_s)

    def close(self, timeout_s: float = 1.0) -> bool:
        """Flush, and end the thread; later lines are lost. False if lines were not written within `timeout_s` seconds."""
        done = self.flush(timeout_s)
        with self._lock:
            already, self._closing = self._closing, True
            thread = self._thread
            self._ring()
        if thread is not None:
            thread.join(timeout_s if done else 0.0)
        elif self._path is not None and not already:
            os.close(self._descriptor)
        return done

    # --- the thread --------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        # A daemon, so that a reader that does not read cannot block the process's exit.
        self._thread = threading.Thread(target=self._run, name=f"{self.name} writer", daemon=True)
        try:
            self._thread.start()
        except RuntimeError:
            # The system has no more threads. The next line tries again; the queue is bounded until then.
            self._thread = None

    def _ring(self) -> None:
        """Wake the thread; the caller holds `_lock`."""
        self._asleep = False
        if not self._rung:
            self._rung = True
            self._bell.release()

    def _wait(self, seconds: float) -> None:
        if self._bell.acquire(timeout=seconds):
            with self._lock:
                self._rung = False

    def _run(self) -> None:
        while True:
            with self._lock:
                ends = self._closing and not self._lines
                idle = not (self._lines or self._reopen or self._rung)
                self._asleep = idle
                reminding = self._remind or self._lost_before or self._lost_after
            if ends:
                break
            if idle:
                self._wait(_REMIND_S if reminding else -1.0)
                with self._lock:
                    self._asleep = False
                    if self._closing and not self._lines:
                        break
            self._turn()
            self._wait(_RETRY_S if self._failing else _BATCH_S)
        if self._path is not None:
            os.close(self._descriptor)

    def _turn(self) -> None:
        """Write all queued lines in one write."""
        with self._lock:
            lines, self._lines = self._lines, []
            before, after = self._lost_before, self._lost_after
            reopen, self._reopen = self._reopen, False
            remind, self._remind = self._remind, False
        if reopen:
            self._open_again()
        pieces = [self._telling(before), *lines, self._telling(after)]
        if remind:
            reminders, more = self._reminders()
            pieces += [f"{text}\n".encode("utf-8", "backslashreplace") for text in reminders]
            with self._lock:
                self._remind = self._remind or more
        data = b"".join(pieces)
        written, error = self._write_out(data)
        size, lost, end = sum(map(len, lines)), 0, len(pieces[0])
        for line in lines:
            end += len(line)
            lost += end > written
        with self._lock:
            self._bytes -= size
            self._pieces -= len(lines)
            self._settled += len(lines)
            self._dropped += lost
            if error is None:
                self._lost_before -= before
                self._lost_after -= after
            else:
                self._lost_before += lost - (before if before and written >= len(pieces[0]) else 0)
            settled = [waiter for upto, waiter in self._waiters if upto <= self._settled]
            self._waiters = [one for one in self._waiters if one[0] > self._settled]
        for waiter in settled:
            waiter.release()
        self._note(error)

    def _telling(self, lost: int) -> bytes:
        return f"{self._lost_line(lost)}\n".encode("utf-8", "backslashreplace") if lost else b""

    def _write_out(self, data: bytes) -> tuple[int, OSError | None]:
        """Write `data`; returns the number of written bytes, and the error if not all were written."""
        written = 0
        if self._midline and data:
            data = b"\n" + data
        extra = int(self._midline and bool(data))
        view = memoryview(data)
        while written < len(data):
            try:
                written += os.write(self._descriptor, view[written : self._write_end(data, written)])
            except BlockingIOError:
                self._wait_for_reader()
            except OSError as error:
                if written:
                    self._midline = data[written - 1] != 10
                return max(0, written - extra), error
        if data:
            self._midline = False
        return written - extra, None

    def _write_end(self, data: bytes, written: int) -> int:
        """Where the write that begins at `written` ends: after as many lines as the kernel writes at once, if that matters."""
        atomic = written + select.PIPE_BUF
        if not self._shared or len(data) <= atomic:
            return len(data)
        return data.rfind(b"\n", written, atomic) + 1 or data.find(b"\n", atomic) + 1 or len(data)

    def _wait_for_reader(self) -> None:
        """Wait until the non-blocking descriptor is writable or its reader is gone; then the next write fails."""
        poll = select.poll()
        poll.register(self._descriptor, select.POLLOUT)
        poll.poll(_POLL_MS)

    def _open_again(self) -> None:
        if self._path is None:
            return
        try:
            fresh = _open(self._path)
        except OSError as error:
            self._notify_failure(error)
            return
        os.close(self._descriptor)
        self._descriptor = fresh
        self._midline = False

    def _note(self, error: OSError | None) -> None:
        first = error is not None and not self._failing
        self._failing = error is not None
        if first and error is not None:
            self._notify_failure(error)

    def _notify_failure(self, error: OSError) -> None:
        if self._failed is not None:
            self._failed(error)


def _open(path: Path) -> int:
    # O_NONBLOCK: opening a pipe without a reader fails instead of blocking. 0600: key logs hold secrets.
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY, 0o600)
