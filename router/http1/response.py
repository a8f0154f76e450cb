"""Writes one HTTP/1.1 response: head, body chunks, end; or breaks it off so that the client sees that it is not complete.

Framing (RFC 9112 section 6): by `content-length` if one is given; otherwise chunked, or for HTTP/1.0 by the end of the
connection. A response that is broken off ends without the final chunk, or with fewer bytes than its `content-length`.
"""

from abc import ABC, abstractmethod
from http import HTTPStatus
from typing import Final, Protocol

import structlog
from mypy_extensions import mypyc_attr

from router.http1.request import RequestBody
from tunnel_protocol.head import HeaderList

_log = structlog.get_logger()

_REASONS: Final = {status.value: status.phrase.encode() for status in HTTPStatus}
_WITHOUT_BODY: Final = frozenset((204, 304))
_STATUS_LINES: Final = {status: b"HTTP/1.1 %d %b\r\n" % (status, reason) for status, reason in _REASONS.items()}
_CONTENT_LENGTH: Final = b"content-length"
_LENGTH_NAME_BYTES: Final = len(_CONTENT_LENGTH)
_DATE_NAME_BYTES: Final = 4
_MAX_LENGTH_DIGITS: Final = 19
_KNOWN_SIZES: Final = 1024
_SIZE_LINES: Final = tuple(b"%x\r\n" % size for size in range(_KNOWN_SIZES))
"""The first lines of the chunks that are frequent: those of single tokens."""

_NOT_COPIED_BYTES: Final = 4096
"""Bytes from which on a chunk is written in three pieces (size line, data, line end) instead of being copied into one."""


class ResponseFlow(Protocol):
    """The producer of a response body; notified when the client is slow or closes."""

    def pause_response(self) -> None:
        """The client reads slower than the response is written."""

    def resume_response(self) -> None:
        """The client has caught up."""

    def client_gone(self) -> None:
        """The client has closed; nothing can be written any more."""

    def client_stalled(self, status: int, reason: str) -> None:
        """The client has stopped sending its body, and no response has begun: answer with `status` now."""


@mypyc_attr(allow_interpreted_subclasses=True)
class ResponseOutput:
    """What a response asks of its connection: a base class, because calls through protocols are slow when compiled."""

    __slots__ = ()

    def write(self, data: bytes) -> None:
        """Queue bytes for the client."""
        raise NotImplementedError

    def response_done(self, *, keep_alive: bool) -> None:
        """The response is complete; the connection stays open if `keep_alive`, else it closes."""
        raise NotImplementedError

    def response_broken(self, *, reset: bool) -> None:
        """End the connection after the queued bytes, by a TCP reset if `reset`: the client sees an incomplete response."""
        raise NotImplementedError

    @property
    def draining(self) -> bool:
        """Whether the response that is about to start has to be the last one of its connection."""
        raise NotImplementedError

    @property
    def peer(self) -> str:
        """The IP address of the client; empty if it is not known (any more)."""
        raise NotImplementedError

    def date(self) -> bytes:
        """The value of the `date` header now."""
        raise NotImplementedError


@mypyc_attr(allow_interpreted_subclasses=True)
class ResponseWriter(ABC):
    """What the producer of a response writes to: the `Response` to a client, or what makes another one of it."""

    __slots__ = ("body_bytes", "over", "started", "status")

    def __init__(self) -> None:
        self.started = False
        """Whether a head was written."""
        self.over = False
        """Whether nothing can be written any more."""
        self.status = 0
        """The status of the head; 0 before it."""
        self.body_bytes = 0
        """Bytes of the body so far."""

    @abstractmethod
    def start(self, status: int, headers: HeaderList) -> None:
        """Write the head. `headers` may have one `content-length`, and no other framing header."""

    @abstractmethod
    def write(self, data: bytes) -> bool:
        """Write a piece of the body. False: the declared length is reached, and the rest is not taken."""

    @abstractmethod
    def end(self) -> None:
        """End the body; if it is shorter than its declared length, break it off."""

    @abstractmethod
    def break_off(self) -> None:
        """End abnormally: the body is not complete."""

    @abstractmethod
    def send(self, status: int, headers: HeaderList, body: bytes = b"") -> None:
        """Write a complete response, made here and not by a worker."""


class Response(ResponseWriter):
    """The response to one request. Methods do nothing after its end, or after the client has closed."""

    __slots__ = (
        "_bodyless",
        "_chunked",
        "_closes_unread",
        "_http_1_0",
        "_left",
        "_output",
        "keep_alive",
    )

    def __init__(
        self,
        output: ResponseOutput,
        *,
        http_1_0: bool,
        keep_alive: bool,
        bodyless: bool,
        closes_unread: RequestBody | None = None,
    ) -> None:
        """`closes_unread`: a response without success closes the connection if this body has not arrived to its end."""
        super().__init__()
        self._output = output
        self._http_1_0 = http_1_0
        self.keep_alive = keep_alive
        """Whether the connection stays open after this response; final once the head is sent."""
        self._bodyless = bodyless
        self._closes_unread = closes_unread
        self._chunked = False
        self._left: int | None = None

    @property
    def peer(self) -> str:
        """The IP address of the client; empty if it is not known (any more)."""
        return self._output.peer

    def start(self, status: int, headers: HeaderList) -> None:
        """Send the head now. `headers` may have one `content-length`, and no other framing header."""
        self.started = True
        self.status = status
        line = None if self._http_1_0 else _STATUS_LINES.get(status)
        if line is None:
            version = b"HTTP/1.0" if self._http_1_0 else b"HTTP/1.1"
            line = b"%b %d %b\r\n" % (version, status, _REASONS.get(status, b"Unknown"))
        lines = [line]
        sized, dated = _add_fields(lines, headers)
        length = _declared_length(headers) if sized else None
        if status in _WITHOUT_BODY:
            self._bodyless = True
        elif length is not None:
            self._left = None if self._bodyless else length
            lines.append(b"content-length: %d\r\n" % length)
        elif self._http_1_0:
            self.keep_alive = False
        else:
            self._chunked = True
            lines.append(b"transfer-encoding: chunked\r\n")
        unread = self._closes_unread
        if unread is not None and not unread.complete and not 200 <= status < 300:
            self.keep_alive = False
            _log.debug("closing connection: request body not read to its end", status=status)
        if not self.keep_alive or self._output.draining:
            self.keep_alive = False
            if not self._http_1_0:  # closing is the default of HTTP/1.0
                lines.append(b"connection: close\r\n")
        elif self._http_1_0:
            lines.append(b"connection: keep-alive\r\n")
        if not dated:
            lines.append(b"date: %b\r\n" % self._output.date())
        lines.append(b"\r\n")
        self._output.write(b"".join(lines))

    def write(self, data: bytes) -> bool:
        """Send a piece of the body. False: the declared length is reached, and the rest is not sent."""
        if self.over or self._bodyless:
            return not self.over
        size = len(data)
        if self._left is not None:
            if size > self._left:
                data, size = data[: self._left], self._left
                self._left = 0
                self.body_bytes += size
                self._output.write(data)
                return False
            self._left -= size
        self.body_bytes += size
        if self._chunked and size >= _NOT_COPIED_BYTES:
            self._output.write(b"%x\r\n" % size)
            self._output.write(data)
            self._output.write(b"\r\n")
        elif self._chunked:
            line = _SIZE_LINES[size] if size < _KNOWN_SIZES else b"%x\r\n" % size
            self._output.write(b"".join((line, data, b"\r\n")))
        else:
            self._output.write(data)
        return True

    def end(self) -> None:
        """End the body; if it is shorter than its declared length, break it off."""
        if self.over:
            return
        if self._left:
            self.break_off()
            return
        self.over = True
        if self._chunked and not self._bodyless:
            self._output.write(b"0\r\n\r\n")
        self._output.response_done(keep_alive=self.keep_alive)

    def break_off(self) -> None:
        """End abnormally: queued bytes are still sent, the final chunk is not."""
        if self.over:
            return
        self.over = True
        # Where the end of the connection is the end of the body, only a reset shows that the body is not complete.
        self._output.response_broken(reset=not self._chunked and self._left is None)

    def send(self, status: int, headers: HeaderList, body: bytes = b"") -> None:
        """Send a complete response with its length."""
        if self.over:
            return
        self.start(status, [*headers, (_CONTENT_LENGTH, b"%d" % len(body))])
        if body:
            self.write(body)
        self._left = None
        self.end()

    def abandoned(self) -> None:
        """The client has closed: write nothing more."""
        self.over = True


def _add_fields(lines: list[bytes], headers: HeaderList) -> tuple[bool, bool]:
    """Add the pieces of all fields but `content-length` to `lines`; whether there is one of that name, and of `date`."""
    sized = dated = False
    for name, value in headers:  # pieces, not formatted lines: this runs for every request
        size = len(name)
        if size == _LENGTH_NAME_BYTES and name == _CONTENT_LENGTH:
            sized = True
            continue
        if size == _DATE_NAME_BYTES and name == b"date":
            dated = True
        lines.append(name)
        lines.append(b": ")
        lines.append(value)
        lines.append(b"\r\n")
    return sized, dated


def _declared_length(headers: HeaderList) -> int | None:
    """The value of `content-length`; None if there is not exactly one in digits."""
    values = [value for name, value in headers if name == _CONTENT_LENGTH]
    if len(values) != 1 or not values[0].isdigit() or len(values[0]) > _MAX_LENGTH_DIGITS:
        return None
    return int(values[0])
