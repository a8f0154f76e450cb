"""Key log and qlog of aioquic connections: a thread writes them, so that neither a full disk nor a slow one costs packets."""

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
"""Events of one connection's trace; of more the last ones are kept."""
ENDED_TRACES = Limit("observer.qlog_ended", pieces=64)
"""Traces of connections that have ended, waiting to be written by one endpoint."""
TRACE_FILES = Limit("observer.qlog_files", pieces=10_000)
"""Traces one endpoint writes: whoever reaches its port makes connections."""


class KeyLog:
    """The text file that aioquic writes secrets to: two methods of it."""

    def __init__(self, writer: LineWriter) -> None:
        self._writer = writer

    def write(self, line: str) -> None:
        """One line, with its newline."""
        self._writer.write(line.rstrip("\n"))

    def flush(self) -> None:
        """Lines are on their way already."""


class Trace(QuicLoggerTrace):
    """The last events of one connection."""

    def __init__(self, *, is_client: bool, odcid: bytes) -> None:
        super().__init__(is_client=is_client, odcid=odcid)
        self.name = odcid.hex()
        self._last: deque[dict[str, Any]] = deque(maxlen=EVENTS.pieces)
        self._seen = 0

    def log_event(self, *, category: str, event: str, data: dict[str, Any]) -> None:
        """Keep one more event."""
        self._seen += 1
        # Not into the library's own list, which only ever grows.
        self._last.append({"data": data, "name": f"{category}:{event}", "time": self.encode_time(time.time())})

    def pieces(self) -> list[str]:
        """The file's text in many small pieces: other threads get their turn in between."""
        head = {**self.to_dict(), "events": []}
        head["common_fields"]["events_left_out"] = self._seen - len(self._last)
        before, after = json.dumps({"qlog_format": "JSON", "qlog_version": "0.3", "traces": [head]}).split("[]", 1)
        events = [f"{',' if at else ''}{json.dumps(event)}\n" for at, event in enumerate(self._last)]
        return [before, "[", *events, "]", after]


class TraceFiles(QuicLogger):
    """One file per ended connection in `directory`; what cannot be written is counted in `dropped`."""

    def __init__(self, directory: Path) -> None:
        """Makes the directory; raises OSError."""
        super().__init__()
        directory.mkdir(parents=True, exist_ok=True)
        self.dropped = 0
        self._directory = directory
        self._ended: deque[Trace] = deque()
        self._made = 0
        self._lock = threading.RLock()
        self._thread: threading.Thread | None = None

    def start_trace(self, is_client: bool, odcid: bytes) -> Trace:
        """See the base class; the trace belongs to its connection alone."""
        return Trace(is_client=is_client, odcid=odcid)

    def end_trace(self, trace: QuicLoggerTrace) -> None:
        """Have it written."""
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
                # It ends when there is nothing left; a daemon, because a hanging disk must not hold the process back.
                self._thread = threading.Thread(target=self._write_all, name="qlog writer", daemon=True)
                self._thread.start()

    def close(self, timeout_s: float = 1.0) -> None:
        """Wait a while for the last traces."""
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
        # In one step: nobody reads half a trace, and both ends of a connection may use one directory.
        unfinished = self._directory / f".{trace.name}.{threading.get_ident()}"
        try:
            with unfinished.open("w", encoding="utf-8") as file:
                file.writelines(trace.pieces())
            unfinished.replace(self._directory / f"{trace.name}.qlog")
        except OSError:
            unfinished.unlink(missing_ok=True)
            raise
