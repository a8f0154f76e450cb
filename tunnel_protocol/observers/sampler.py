"""Limits log lines that peers can cause: the first of each kind and source are written, one line counts the others.

A refused packet, request or registration is logged; a million of them must not fill the log.
"""

import threading
import time
from collections.abc import Callable, MutableMapping
from typing import Any, NamedTuple

import structlog

from tunnel_protocol.limit import Limit

INTERVAL_S = 10.0
"""Seconds after which the counts start again."""

LINES_OF_SOURCE = Limit("observer.sampled_lines_of_source", pieces=20)
"""Warnings and errors of one kind and source in an interval."""
LINES_OF_KIND = Limit("observer.sampled_lines_of_kind", pieces=200)
"""Lines of one kind in an interval, of all sources."""
KINDS = Limit("observer.sampled_kinds", pieces=500)
"""Kinds counted separately; further kinds share one count."""
SOURCES = Limit("observer.sampled_sources", pieces=2_000)
"""Sources of one kind counted separately; further sources share one count."""

KIND = "sample_kind"
"""Field of an event with its kind, if the kind is not the event's text; it is not written to the log."""

_SOURCES = ("peer", "address", "addr", "inference_server_id", "dial_address", "url", "model_id")
_OTHERS = "(others)"


class Summary(NamedTuple):
    """Number of lines of one kind that were left out in an interval."""

    kind: str
    lines: int
    sources: int
    """Number of sources whose lines were left out; sources above `SOURCES` count as one."""


class _Kind:
    """Counts of one kind in the current interval."""

    __slots__ = ("began", "left_out", "seen", "shown", "silenced")

    def __init__(self, began: float) -> None:
        self.began = began
        self.shown = 0
        self.left_out = 0
        self.seen: dict[str, int] = {}
        self.silenced: set[str] = set()


class Sampler:
    """Counts lines by kind and source; may be called from any thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` returns seconds."""
        self._clock = clock
        self._lock = threading.RLock()
        self._kinds: dict[str, _Kind] = {}
        self._due: list[Summary] = []

    def admits(self, kind: str, source: str, *, of_source: int | None = LINES_OF_SOURCE.pieces) -> bool:
        """Whether to write another line. `of_source` is the limit per source, None for no limit per source."""
        now = self._clock()
        with self._lock:
            known = self._kinds.get(kind)
            if known is None or now - known.began >= INTERVAL_S:
                known = self._begin(kind, now)
            if source not in known.seen and len(known.seen) >= (SOURCES.pieces or 0):
                source = _OTHERS
            count = known.seen[source] = known.seen.get(source, 0) + 1
            if known.shown < (LINES_OF_KIND.pieces or 0) and (of_source is None or count <= of_source):
                known.shown += 1
                return True
            known.left_out += 1
            known.silenced.add(source)
            return False

    def summaries(self) -> tuple[list[Summary], bool]:
        """Summaries of intervals that have ended, and whether there will be more."""
        now = self._clock()
        with self._lock:
            for kind, known in list(self._kinds.items()):
                if now - known.began >= INTERVAL_S:
                    self._end(kind, known)
            due, self._due = self._due, []
            return due, any(known.left_out for known in self._kinds.values())

    def _begin(self, kind: str, now: float) -> _Kind:
        before = self._kinds.get(kind)
        if before is not None:
            self._end(kind, before)
        elif len(self._kinds) >= (KINDS.pieces or 0):
            for other, known in list(self._kinds.items()):
                if now - known.began >= INTERVAL_S:
                    self._end(other, known)
            if len(self._kinds) >= (KINDS.pieces or 0):
                kind = _OTHERS
                shared = self._kinds.get(kind)
                if shared is not None and now - shared.began < INTERVAL_S:
                    return shared
                if shared is not None:
                    self._end(kind, shared)
        known = self._kinds[kind] = _Kind(now)
        return known

    def _end(self, kind: str, known: _Kind) -> None:
        del self._kinds[kind]
        # Bounded by the same limit as the kinds, and emptied once a second.
        if known.left_out and len(self._due) < (KINDS.pieces or 0):
            self._due.append(Summary(kind, known.left_out, len(known.silenced)))


class SampleLines:
    """A structlog processor: drops lines that `sampler` does not admit, and calls `left_out` for each."""

    def __init__(self, sampler: Sampler, left_out: Callable[[], None]) -> None:
        self._sampler = sampler
        self._left_out = left_out

    def __call__(self, _logger: Any, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        """Pass the event on. Raises `structlog.DropEvent` for a line above a limit."""
        kind = event.pop(KIND, None) or str(event.get("event", ""))
        # Info and debug lines about one registered worker may be frequent, so only warnings and errors have a limit per source.
        often = method in ("info", "debug")
        admitted = self._sampler.admits(str(kind), _source(event), of_source=None if often else LINES_OF_SOURCE.pieces)
        if not admitted:
            self._left_out()
            raise structlog.DropEvent
        return event


def _source(event: MutableMapping[str, Any]) -> str:
    """The source named in a line: an address without its port, which changes with each connection, or a name; "" if none."""
    for name in _SOURCES:
        value = event.get(name)
        if isinstance(value, str) and value:
            host, colon, port = value.rpartition(":")
            return host if colon and port.isdigit() else value[:200]
    return ""


def summary_event(summary: Summary) -> dict[str, Any]:
    """The fields of the log line for a summary."""
    return {
        "event": f"{summary.lines} similar log lines were left out",
        "like": summary.kind,
        "lines": summary.lines,
        "sources": summary.sources,
        "interval_s": int(INTERVAL_S),
    }
