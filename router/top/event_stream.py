"""Decodes server-sent events (WHATWG HTML, 9.2.6 "Interpreting an event stream") from bytes, without I/O.

Only what docs/api.md uses: `event` and `data`. Comments, `id`, `retry` and unknown fields are ignored, as the standard asks. Lines end with LF or CR LF.
"""

from typing import Final, NamedTuple

from tunnel_protocol.limit import Limit

DOCUMENT: Final = Limit("top.document", bytes=64 * 1024 * 1024)
"""One event or answer of a router."""

_MAX_BYTES: Final = DOCUMENT.bytes or 0


class Event(NamedTuple):
    """One event."""

    name: str
    data: bytes


class EventTooLargeError(Exception):
    """The router sends an event beyond `DOCUMENT`."""


class EventStream:
    """Collects chunks of one stream, and gives its events."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._held = 0
        self._name = ""
        self._data: list[bytes] = []

    def feed(self, chunk: bytes) -> list[Event]:
        """The events that `chunk` completes. Raises `EventTooLargeError`."""
        self._held += len(chunk)
        if self._held > _MAX_BYTES:
            raise EventTooLargeError(f"an event of more than {_MAX_BYTES} bytes")
        self._parts.append(chunk)
        if b"\n" not in chunk:
            return []
        *lines, rest = b"".join(self._parts).split(b"\n")
        self._parts = [rest]
        events: list[Event] = []
        for line in lines:
            self._line(line.removesuffix(b"\r"), events)
        self._held = len(rest) + sum(map(len, self._data))
        return events

    def _line(self, line: bytes, events: list[Event]) -> None:
        if not line:
            if self._data:
                events.append(Event(self._name or "message", b"\n".join(self._data)))
            self._name, self._data = "", []
            return
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"event":
            self._name = value.decode("utf-8", "replace")
        elif field == b"data":
            self._data.append(value)
