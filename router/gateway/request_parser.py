"""Bytes of one client connection to requests, one after the other (RFC 9112). No I/O.

llhttp (through httptools) reads the syntax; this file adds the limits and refuses what two readers could understand in two ways.
"""

from collections.abc import Callable
from typing import Protocol

import httptools

from router.gateway.request import ClientRequest, RequestBody
from tunnel_protocol.head import HeaderList

MAX_HEADERS = 100
MAX_HEAD_BYTES = 417_792
MAX_TARGET_BYTES = 65_534
_VERSIONS = frozenset(("1.0", "1.1"))


class RefusedError(Exception):
    """A request that is answered by `status` without being handled, and ends its connection."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class BrokenBodyError(Exception):
    """The client broke the framing of the body of `request`; nothing after it can be read."""

    def __init__(self, request: ClientRequest, reason: str) -> None:
        super().__init__(reason)
        self.request = request
        self.reason = reason


class RequestOwner(Protocol):
    """Who takes the requests: the connection."""

    def request_begun(self, request: ClientRequest) -> None:
        """A head is complete; the body follows in `request.body`. May raise `RefusedError`."""

    def request_complete(self, request: ClientRequest) -> None:
        """The last byte of it has arrived."""

    def set_body_reading(self, reading: bool) -> None:
        """Whether the body that arrives is wanted now."""

    def invite_body(self) -> None:
        """Ask the client, which waits for it, to send the body."""


class _Nobody:
    """The owner of a parser that is never fed again."""

    __slots__ = ()

    def request_begun(self, request: ClientRequest) -> None: ...

    def request_complete(self, request: ClientRequest) -> None: ...

    def set_body_reading(self, reading: bool) -> None: ...

    def invite_body(self) -> None: ...


_NOBODY = _Nobody()


class RequestParser:
    """Implements the callbacks of httptools. After an error it must not be fed again."""

    __slots__ = (
        "_arriving",
        "_bytes_without_body",
        "_clock",
        "_further",
        "_head_bytes",
        "_head_of_body",
        "_headers",
        "_in_head",
        "_owner",
        "_piece",
        "_syntax",
        "_target",
    )

    def __init__(self, owner: RequestOwner, clock: Callable[[], float]) -> None:
        self._owner: RequestOwner = owner
        self._clock = clock
        self._target = b""
        self._headers: HeaderList = []
        self._head_bytes = 0
        self._in_head = False
        self._arriving: ClientRequest | None = None
        self._bytes_without_body = 0
        self._head_of_body: bytes | None = None
        # What one delivery of the socket brings of a body goes on as one piece, however small its chunks are.
        self._piece = b""
        self._further: list[bytes] = []
        self._syntax: httptools.HttpRequestParser | None = self._new_syntax()

    @property
    def between_requests(self) -> bool:
        """Whether nothing has arrived of a next request, not even half of a head."""
        return self._arriving is None and not self._in_head

    def feed(self, data: bytes) -> None:
        """Read on; the owner hears of each head and each end. Raises `RefusedError` and `BrokenBodyError`."""
        if self._in_head or self._arriving is None:
            self._head_bytes += len(data)
        try:
            self._feed(data)
            if self._piece:
                self._hand_over()
        except httptools.HttpParserCallbackError as raised:
            cause = raised.__context__
            if not isinstance(cause, RefusedError):
                raise
            raise cause from None
        except httptools.HttpParserError as error:
            raise self._malformed(str(error)) from None
        if self._arriving is not None:
            self._bytes_without_body += len(data)
            if self._bytes_without_body > MAX_HEAD_BYTES:
                raise self._malformed("trailers too long")
        elif self._head_bytes > MAX_HEAD_BYTES:
            raise RefusedError(431)

    def abandon(self) -> None:
        """Nothing that arrives is of interest any more."""
        self._arriving = None
        self._in_head = False
        self._piece = b""
        self._further = []

    def release(self) -> None:
        """The connection is over. Cuts the reference cycles, so that it is freed at once and not by the collector."""
        self.abandon()
        self._syntax = None
        self._owner = _NOBODY

    def _feed(self, data: bytes) -> None:
        syntax = self._syntax
        while data and syntax is not None:
            try:
                syntax.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                # Nothing is ever upgraded: what follows is ordinary HTTP, the body of this very request included,
                # which llhttp takes for the new protocol's.
                data = data[upgrade.args[0] :]
                if self._head_of_body is not None:
                    syntax = self._syntax = self._new_syntax()
                    syntax.feed_data(self._head_of_body)
                    self._head_of_body = None
            else:
                return

    def _hand_over(self) -> None:
        """Give the collected pieces to the body they belong to."""
        data = self._piece
        self._piece = b""
        if self._further:
            data = b"".join((data, *self._further))
            self._further = []
        if self._arriving is not None:
            self._arriving.body.feed(data)

    def _new_syntax(self) -> httptools.HttpRequestParser:
        syntax = httptools.HttpRequestParser(self)
        # Chunked framing wins over a content-length beside it (RFC 9112 section 6.3); `_consistent` drops the latter.
        syntax.set_dangerous_leniencies(lenient_chunked_length=True)
        return syntax

    def _malformed(self, reason: str) -> Exception:
        """What is wrong if the client broke the framing: of the body that is arriving, or between two requests."""
        if self._piece:
            self._hand_over()
        request, self._arriving = self._arriving, None
        return RefusedError(400) if request is None else BrokenBodyError(request, reason)

    # --- httptools -------------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """A request starts."""
        if self._head_of_body is not None:
            return
        self._target = b""
        self._headers = []
        self._in_head = True

    def on_url(self, url: bytes) -> None:
        """A piece of the request target."""
        if not self._in_head:
            return
        self._target += url
        if len(self._target) > MAX_TARGET_BYTES:
            raise RefusedError(414)

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header; of the trailers of a chunked body nothing is kept."""
        if not self._in_head:
            return
        if len(self._headers) >= MAX_HEADERS:
            raise RefusedError(431)
        # Blanks around a value are no part of it (RFC 9112 section 5.1); llhttp leaves those behind it.
        self._headers.append((name.lower(), value.rstrip(b" \t")))

    def on_headers_complete(self) -> None:
        """The head is there."""
        syntax = self._syntax
        if self._head_of_body is not None or syntax is None:
            return
        if self._head_bytes > MAX_HEAD_BYTES and _size(self._target, self._headers) > MAX_HEAD_BYTES:
            raise RefusedError(431)
        self._in_head = False
        self._head_bytes = self._bytes_without_body = 0
        version = syntax.get_http_version()
        if version not in _VERSIONS:
            raise RefusedError(400)
        http_1_0 = version == "1.0"
        headers = self._headers
        first = dict(headers[::-1])
        if len(first) != len(headers) or b"transfer-encoding" in first:
            headers = _consistent(headers, http_1_0=http_1_0)
            first = dict(headers[::-1])
        body = RequestBody(self._owner.set_body_reading)
        request = ClientRequest(
            syntax.get_method(),
            _origin_form(self._target),
            headers,
            first,
            http_1_0=http_1_0,
            keep_alive=syntax.should_keep_alive(),
            received_at=self._clock(),
            body=body,
        )
        if request.expects_continue:
            body.invite = self._owner.invite_body
        self._owner.request_begun(request)
        self._arriving = request
        if syntax.should_upgrade():
            self._head_of_body = _head_of_body(request)

    def on_body(self, data: bytes) -> None:
        """A piece of the body."""
        self._bytes_without_body = 0
        if not self._piece:
            self._piece = data
        else:
            self._further.append(data)

    def on_message_complete(self) -> None:
        """The request is complete."""
        if self._head_of_body is not None and self._syntax is not None and self._syntax.should_upgrade():
            return
        if self._piece:
            self._hand_over()
        request, self._arriving = self._arriving, None
        if request is not None:
            request.body.finish()
            self._owner.request_complete(request)


def _origin_form(target: bytes) -> bytes:
    """Path and query of a target that may be in absolute form (RFC 9112 section 3.2.2) or carry a fragment."""
    if not target.startswith(b"/"):
        scheme, separator, rest = target.partition(b"://")
        if separator and scheme.lower() in (b"http", b"https"):
            path = rest.partition(b"/")[2]
            target = b"/" + path
    return target.partition(b"#")[0]


def _head_of_body(request: ClientRequest) -> bytes | None:
    """A head that announces the body of `request` and nothing else; None if there is none."""
    framing = [entry for entry in request.headers if entry[0] in (b"content-length", b"transfer-encoding")]
    if not framing:
        return None
    lines = [b"POST / HTTP/1.0" if request.http_1_0 else b"POST / HTTP/1.1"]
    lines += [b"%b: %b" % entry for entry in framing]
    lines.append(b"connection: keep-alive" if request.keep_alive else b"connection: close")
    return b"\r\n".join([*lines, b"\r\n"])


def _size(target: bytes, headers: HeaderList) -> int:
    return len(target) + sum(len(name) + len(value) + 4 for name, value in headers)


def _consistent(headers: HeaderList, *, http_1_0: bool) -> HeaderList:
    """Headers without a `content-length` that chunked framing overrides; refuses framing that could be read in two ways."""
    encodings = [value for name, value in headers if name == b"transfer-encoding"]
    lengths = {value for name, value in headers if name == b"content-length"}
    if len(lengths) > 1:
        raise RefusedError(400)
    if not encodings:
        return headers
    if http_1_0 or len(encodings) > 1 or encodings[0].lower() != b"chunked":
        raise RefusedError(400)
    return [entry for entry in headers if entry[0] != b"content-length"] if lengths else headers
