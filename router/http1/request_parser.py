"""Bytes of one client connection to requests, one after the other (RFC 9112). No I/O.

llhttp (through httptools) reads the syntax; this file adds the limits and refuses what two readers could understand in two ways.
"""

from collections.abc import Callable
from typing import Protocol

import httptools

from router.http1.request import ClientRequest, RequestBody
from router.http1.target import BadTargetError, host_is_valid, origin_form
from tunnel_protocol.head import HeaderList
from tunnel_protocol.limit import Limit

HEAD = Limit("http1.head", bytes=417_792, pieces=100)
"""A request head with all its header lines; as many bytes may come of chunk lines and trailers between two pieces of body."""

TARGET = Limit("http1.target", bytes=65_534)
"""A request target."""

_MAX_HEADERS = HEAD.pieces or 0
_MAX_HEAD_BYTES = HEAD.bytes or 0
_MAX_TARGET_BYTES = TARGET.bytes or 0
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


class _LastRequestError(Exception):
    """Whatever follows the request that was read is not to be understood (RFC 9112 section 6.1)."""


class RequestCallbacks(Protocol):
    """Who takes the requests: the connection."""

    def request_begun(self, request: ClientRequest) -> None:
        """A head is complete; the body follows in `request.body`. May raise `RefusedError`."""

    def request_complete(self, request: ClientRequest) -> None:
        """The last byte of it has arrived."""

    def set_body_reading(self, reading: bool) -> None:
        """Whether the body that arrives is wanted now."""

    def invite_body(self) -> None:
        """Ask the client, which waits for it, to send the body."""


class _NullRequestCallbacks:
    """The owner of a parser that is never fed again."""

    __slots__ = ()

    def request_begun(self, request: ClientRequest) -> None: ...

    def request_complete(self, request: ClientRequest) -> None: ...

    def set_body_reading(self, reading: bool) -> None: ...

    def invite_body(self) -> None: ...


_NULL_CALLBACKS = _NullRequestCallbacks()


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
        "_heads",
        "_in_head",
        "_last",
        "_owner",
        "_piece",
        "_syntax",
        "_target",
    )

    def __init__(self, owner: RequestCallbacks, clock: Callable[[], float]) -> None:
        self._owner: RequestCallbacks = owner
        self._clock = clock
        self._target = b""
        self._headers: HeaderList = []
        self._head_bytes = 0
        self._in_head = False
        self._heads = 0
        self._last = False
        self._arriving: ClientRequest | None = None
        self._bytes_without_body = 0
        self._head_of_body: bytes | None = None
        # What one delivery of the socket brings of a body goes on as one piece, however small its chunks are.
        self._piece = b""
        self._further: list[bytes] = []
        self._syntax: httptools.HttpRequestParser | None = self._new_syntax()

    @property
    def in_head(self) -> bool:
        """Whether a head has begun to arrive."""
        return self._in_head

    @property
    def heads(self) -> int:
        """How many heads have arrived."""
        return self._heads

    @property
    def arriving(self) -> ClientRequest | None:
        """The request whose body is arriving."""
        return self._arriving

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
            if isinstance(cause, _LastRequestError):
                self._syntax = None
                return
            if not isinstance(cause, RefusedError):
                raise
            raise cause from None
        except httptools.HttpParserError as error:
            raise self._malformed(str(error)) from None
        if self._arriving is not None:
            self._bytes_without_body += len(data)
            if self._bytes_without_body > _MAX_HEAD_BYTES:
                raise self._malformed("trailers too long")
        elif self._head_bytes > _MAX_HEAD_BYTES:
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
        self._owner = _NULL_CALLBACKS

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
        if self._arriving is not None:  # pragma: no branch - pieces belong to a request that is arriving
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
        if self._last:
            raise _LastRequestError
        self._target = b""
        self._headers = []
        self._in_head = True

    def on_url(self, url: bytes) -> None:
        """A piece of the request target."""
        if not self._in_head:
            return
        self._target += url
        if len(self._target) > _MAX_TARGET_BYTES:
            raise RefusedError(414)

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header; of the trailers of a chunked body nothing is kept."""
        if not self._in_head:
            return
        if len(self._headers) >= _MAX_HEADERS:
            raise RefusedError(431)
        # Blanks around a value are no part of it (RFC 9112 section 5.1); llhttp leaves those behind it.
        self._headers.append((name.lower(), value.rstrip(b" \t")))

    def on_headers_complete(self) -> None:
        """The head is there."""
        syntax = self._syntax
        if self._head_of_body is not None or syntax is None:
            return
        if self._head_bytes > _MAX_HEAD_BYTES and _size(self._target, self._headers) > _MAX_HEAD_BYTES:
            raise RefusedError(431)
        self._in_head = False
        self._head_bytes = self._bytes_without_body = 0
        version = syntax.get_http_version()
        if version not in _VERSIONS:
            raise RefusedError(400)
        http_1_0 = version == "1.0"
        method = syntax.get_method()
        try:
            target = origin_form(method, self._target)
        except BadTargetError:
            raise RefusedError(400) from None
        headers = self._headers
        first = dict(headers[::-1])
        if len(first) != len(headers) or b"transfer-encoding" in first:
            headers = _consistent(headers, http_1_0=http_1_0)
            self._last = headers is not self._headers
            first = dict(headers[::-1])
        host = first.get(b"host")
        if host is None:
            if not http_1_0:
                raise RefusedError(400)
        elif not host_is_valid(host):
            raise RefusedError(400)
        self._heads += 1
        body = RequestBody(self._owner.set_body_reading)
        request = ClientRequest(
            method,
            target,
            headers,
            first,
            http_1_0=http_1_0,
            keep_alive=syntax.should_keep_alive() and not self._last,
            last=self._last,
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
    if len(lengths) > 1 or sum(name == b"host" for name, _ in headers) > 1:
        raise RefusedError(400)
    if not encodings:
        return headers
    if http_1_0 or len(encodings) > 1 or encodings[0].lower() != b"chunked":
        raise RefusedError(400)
    return [entry for entry in headers if entry[0] != b"content-length"] if lengths else headers
