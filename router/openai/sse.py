"""Splits a stream of server-sent events into events (WHATWG HTML, "Server-sent events"), and reads their data. No I/O."""

from typing import Final

from tunnel_protocol.limit import Limit

EVENT: Final = Limit("openai.event", bytes=16 * 1024 * 1024)
"""Bytes of one event of a worker's stream; a longer one ends the stream with an error."""

_MAX_EVENT = EVENT.bytes or 0
_END: Final = b"\n\n"


class EventTooLongError(Exception):
    """A worker's event is longer than `EVENT`."""


class EventSplitter:
    """Collects bytes until events are complete. Line ends become LF."""

    __slots__ = ("_cr", "_pending")

    def __init__(self) -> None:
        self._pending = b""
        self._cr = False

    @property
    def idle(self) -> bool:
        """Whether no byte of a next event has arrived."""
        return not self._pending and not self._cr

    @property
    def pending(self) -> bytes:
        """Bytes of an event that is not complete."""
        return self._pending

    def feed(self, data: bytes) -> list[bytes]:
        """The events that `data` completes, each with the empty line at its end. Raises `EventTooLongError`."""
        if self._cr or b"\r" in data:
            data = self._line_feeds(data)
        if self._pending:
            data = self._pending + data
            self._pending = b""
        end = data.find(_END)
        if end == len(data) - 2 and end > 0:
            return [data]  # nearly always: one event arrives at a time
        found: list[bytes] = []
        at = 0
        while end >= 0:
            end += 2
            if end - at > 2:  # else it is only another empty line
                found.append(data[at:end])
            at = end
            while data[at : at + 1] == b"\n":
                at += 1
            end = data.find(_END, at)
        if at < len(data):
            self._pending = data[at:] if at else data
            if len(self._pending) > _MAX_EVENT:
                raise EventTooLongError
        return found

    def _line_feeds(self, data: bytes) -> bytes:
        """`data` with LF for CRLF and CR; a CR at the end of the data before may belong to a LF at its beginning."""
        if self._cr and data[:1] == b"\n":
            data = data[1:]
        self._cr = data[-1:] == b"\r"
        return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")


def data_of(event: bytes) -> bytes | None:
    """The data of an event; None if it has none, as a comment. Line ends in it become blanks, which JSON allows there."""
    if event.startswith(b"data:") and event.find(b"\n") == len(event) - 2:
        return event[6:-2] if event[5:6] == b" " else event[5:-2]
    lines = []
    for line in event.split(b"\n"):
        name, _, value = line.partition(b":")
        if name == b"data":
            lines.append(value[1:] if value[:1] == b" " else value)
    return b" ".join(lines) if lines else None


def with_data(event: bytes, data: bytes) -> bytes:
    """`event` with other data, in one line; its other lines stay."""
    if event.startswith(b"data:") and event.find(b"\n") == len(event) - 2:
        return b"data: %b\n\n" % data
    kept = [line for line in event.rstrip(b"\n").split(b"\n") if line.partition(b":")[0] != b"data"]
    return b"\n".join([*kept, b"data: " + data]) + _END
