"""Splits a Server-Sent Events stream into events, without changing bytes, and classifies them. Sans-I/O.

An event ends with an empty line (LF LF or CR LF CR LF), which is part of it.
"""

import re
from enum import Enum

import msgspec

from tunnel_protocol.limit import Limit

EVENT = Limit("worker.event", bytes=1024 * 1024)
"""Size of one event of an engine's stream."""

MAX_EVENT_BYTES = EVENT.bytes or 0
_END = re.compile(rb"\n\n|\r\n\r\n").search


class EventTooLargeError(Exception):
    """An event is longer than 1 MiB."""


class EventKind(Enum):
    """What an event means for the state of a request."""

    OUTPUT = "output"
    DONE = "done"
    OTHER = "other"


class _Typed(msgspec.Struct):
    type: str = ""


class EventCutter:
    """Collects bytes and returns complete events."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """Events completed by `data`. Raises `EventTooLargeError`; earlier events in `data` are lost as well."""
        rest = self._rest
        searched = max(0, len(rest) - 3)  # the empty line may begin in the last 3 bytes
        rest += data
        events = []
        start = 0
        while True:
            found = _END(rest, max(start, searched))
            if found is None:
                break
            end = found.end()
            events.append(bytes(rest[start:end]))
            start = end
        if start:
            del rest[:start]
        if len(rest) > MAX_EVENT_BYTES:
            raise EventTooLargeError
        return events

    def rest(self) -> bytes:
        """Bytes received after the last complete event."""
        return bytes(self._rest)


def kind_of(event: bytes) -> EventKind:
    """Classify a complete event."""
    name = b""
    data = []
    for line in event.splitlines():
        if line.startswith(b"data:"):
            data.append(line[5:].removeprefix(b" "))
        elif line.startswith(b"event:"):
            name = line[6:].strip()
    text = b"\n".join(data).strip()
    if text == b"[DONE]":
        return EventKind.DONE
    if not text or name == b"response.created":
        return EventKind.OTHER
    if b"response.created" in text:
        try:
            if msgspec.json.decode(text, type=_Typed).type == "response.created":
                return EventKind.OTHER
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            pass
    return EventKind.OUTPUT
