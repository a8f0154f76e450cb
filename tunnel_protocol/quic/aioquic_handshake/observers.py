"""Key log and qlog of aioquic connections, written by a thread, so that a full or slow disk does not delay packets."""

import json
import threading
import time
from collections import deque
from pathlib import Path
from typing import Any

import structlog
from aioquic.quic.logger import QuicLogger, QuicLoggerTrace

from tunnel_protocol.limit import Limit
from tunnel_protocol.observers.line_writer import LineWriter

_log = structlog.get_logger()

EVENTS = Limit("observer.qlog_events", pieces=50_000)
"""Events kept of one connection's trace: the last ones."""
ENDED_TRACES = Limit("observer.qlog_ended", pieces=64)
"""Traces of ended connections of one endpoint that wait to be written."""
TRACE_FILES = Limit("observer.qlog_files", pieces=10_000)
"""Trace files that one endpoint writes; bounded because any client can cause one."""


class KeyLog:
    """Stands in for the text file to which aioquic writes secrets; has the two methods that aioquic uses."""

    def __init__(self, writer: LineWriter) -> None:
        self._writer = writer

    def write(self, line: str) -> None:
        """Queue one line, which ends with a newline."""
        self._writer.write(line.rstrip("\n"))

    def flush(self) -> None:
        """Nothing to do: lines are queued by `write`."""


class Trace(QuicLoggerTrace):
    """The qlog trace of one connection, with its last events only."""

    def __init__(self, files: "TraceFiles", *, is_client: bool, odcid: bytes) -> None:
        super().__init__(is_client=is_client, odcid=odcid)
        self._files = files
        self.name = odcid.hex()
        self._last: deque[dict[str, Any]] = deque(maxlen=EVENTS.pieces)
        self._seen = 0

    def log_event(self, *, category: str, event: str, data: dict[str, Any]) -> None:
        """Append an event; the oldest is dropped above the limit."""
        self._seen += 1
        # Not into the library's own list, which is unbounded.
        self._last.append({"data": data, "name": f"{category}:{event}", "time": self.encode_time(time.time())})

    def end(self) -> None:
        """The connection has ended: queue the trace for writing."""
        self._files.end_trace(self)

    def pieces(self) -> list[str]:
        """The file's text in many small pieces, so that other threads can run in between."""
        head = {**self.to_dict(), "events": []}
        head["common_fields"]["events_left_out"] = self._seen - len(self._last)
        before, after = json.dumps({"qlog_format": "JSON", "qlog_version": "0.3", "traces": [head]}).split("[]", 1)
        events = [f"{',' if at else ''}{json.dumps(event)}\n" for at, event in enumerate(self._last)]
        return [before, "[", *events, "]", after]


class TraceFiles(QuicLogger):
    """Writes one file per ended connection into `directory`; counts traces that cannot be written in `dropped`."""

    def __init__(self, directory: Path) -> None:
        """Create the directory. Raises OSError."""
        super().__init__()
        directory.mkdir(parents=True, exist_ok=True)
        self.dropped = 0
        self._directory = directory
        self._ended: deque[Trace] = deque()
        self._made = 0
        self._lock = threading.RLock()
        self._thread: threading.Thread | None = None

    def start_trace(self, is_client: bool, odcid: bytes) -> Trace:
        """See the base class; the trace is not kept in this object."""
        return Trace(self, is_client=is_client, odcid=odcid)

    def end_trace(self, trace: QuicLoggerTrace) -> None:
        """Queue the trace for writing."""
        with self._lock:
            if (
                not isinstance(trace, Trace)
                or len(self._ended) >= (ENDED_TRACES.pieces or 0)
                or self._made >= (TRACE_FILES.pieces or 0)
            ):
                self.dropped += 1
                _log.warning("qlog trace left out; there are too many")
                return
            self._made += 1
            self._ended.append(trace)
            if self._thread is None:
                # The thread ends when the queue is empty. It is a daemon, so a hanging disk cannot block the process's exit.
                self._thread = threading.Thread(target=self._write_all, name="qlog writer", daemon=True)
                self._thread.start()

    def close(self, timeout_s: float = 1.0) -> None:
        """Wait up to `timeout_s` seconds for the queued traces to be written."""
        with self._lock:
            thread = self._thread
        if thread is not None:
            thread.join(timeout_s)

    def _write_all(self) -> None:
        while True:
            with self._lock:
                if not self._ended:
                    self._thread = None
                    return
                trace = self._ended.popleft()
            try:
                self._write(trace)
            except OSError as error:
                with self._lock:
                    self.dropped += 1
                _log.warning("qlog trace cannot be written", path=str(self._directory), error=str(error))

    def _write(self, trace: Trace) -> None:
        # Rename, so that a reader never sees an incomplete trace. Both ends of a connection may use one directory.
        unfinished = self._directory / f".{trace.name}.{threading.get_ident()}"
        try:
            with unfinished.open("w", encoding="utf-8") as file:
                file.writelines(trace.pieces())
            unfinished.replace(self._directory / f"{trace.name}.qlog")
        except OSError:
            unfinished.unlink(missing_ok=True)
            raise
