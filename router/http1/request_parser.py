"""Parses the bytes of one client connection into requests (RFC 9112). No I/O.

llhttp (through httptools) parses the syntax; this module adds the limits and refuses requests that two parsers could
understand differently (request smuggling).
"""

from collections.abc import Callable
from typing import Final, Protocol

import httptools

from router.http1.request import ClientRequest, RequestBody
from router.http1.target import BadTargetError, host_is_valid, origin_form
from tunnel_protocol.head import HeaderList
from tunnel_protocol.limit import Limit

HEAD: Final = Limit("http1.head", bytes=417_792, pieces=100)
"""Bytes of a request head with all its header lines, and of chunk lines and trailers between two pieces of a body."""

TARGET: Final = Limit("http1.target", bytes=65_534)
"""Bytes of a request target."""

_MAX_HEADERS: Final = HEAD.pieces or 0
_MAX_HEAD_BYTES: Final = HEAD.bytes or 0
_MAX_TARGET_BYTES: Final = TARGET.bytes or 0
_HTTP_1_1: Final = b" HTTP/1.1\r\n"
_VERSIONS: Final = frozenset(("1.0", "1.1"))


class RefusedError(Exception):
    """The request is answered with `status` without being handled, and its connection closes."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class BrokenBodyError(Exception):
    """The framing of the body of `request` is invalid; no later byte of the connection can be parsed."""

    def __init__(self, request: ClientRequest, reason: str) -> None:
        super().__init__(reason)
        self.request = request
        self.reason = reason


class _LastRequestError(Exception):
    """Bytes after the last parsed request must not be read as requests (RFC 9112 section 6.1)."""


class RequestCallbacks(Protocol):
    """Receives the requests; the connection implements it."""

    def request_begun(self, request: ClientRequest) -> None:
        """A head is complete; the body follows in `request.body`. May raise `RefusedError`."""

    def request_complete(self, request: ClientRequest) -> None:
        """The last byte of `request` has arrived."""

    def set_body_reading(self, reading: bool) -> None:
        """Whether the body that arrives can be taken now."""

    def invite_body(self) -> None:
        """Send `100 Continue` to a client that waits for it."""


class _NullRequestCallbacks:
    """The callbacks of a released parser; does nothing."""

    __slots__ = ()

    def request_begun(self, request: ClientRequest) -> None: ...

    def request_complete(self, request: ClientRequest) -> None: ...

    def set_body_reading(self, reading: bool) -> None: ...

    def invite_body(self) -> None: ...


_NULL_CALLBACKS: Final = _NullRequestCallbacks()


class RequestParser:
    """Implements the callbacks of httptools. After an error it must not be fed again."""

    __slots__ = (
        "_arriving",
        "_bytes_without_body",
        "_clock",
        "_fed",
        "_further",
        "_head_bytes",
        "_head_of_body",
        "_headers",
        "_heads",
        "_in_head",
        "_last",
        "_owner",
        "_piece",
        "_plain_target",
        "_syntax",
        "_target",
        "_valid_host",
    )

    def __init__(self, owner: RequestCallbacks, clock: Callable[[], float]) -> None:
        self._owner: RequestCallbacks = owner
        self._clock = clock
        self._target = b""
        self._plain_target = b""
        """A valid one in origin form, which begins with `/`."""
        self._valid_host = b""
        self._headers: HeaderList = []
        self._head_bytes = 0
        self._fed = b""
        """What is being parsed, if it begins with a head that has not been read."""
        self._in_head = False
        self._heads = 0
        self._last = False
        self._arriving: ClientRequest | None = None
        self._bytes_without_body = 0
        self._head_of_body: bytes | None = None
        # The body bytes of one read of the socket are delivered as one piece, however small the chunks are.
        self._piece = b""
        self._further: list[bytes] = []
        self._syntax: httptools.HttpRequestParser | None = self._new_syntax()

    @property
    def in_head(self) -> bool:
        """Whether a head has begun to arrive."""
        return self._in_head

    @property
    def heads(self) -> int:
        """Number of heads that have arrived."""
        return self._heads

    @property
    def arriving(self) -> ClientRequest | None:
        """The request whose body is arriving."""
        return self._arriving

    @property
    def between_requests(self) -> bool:
        """Whether no byte of a next request has arrived."""
        return self._arriving is None and not self._in_head

    def feed(self, data: bytes) -> None:
        """Parse `data` and report to the callbacks. Raises `RefusedError` or `BrokenBodyError`."""
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
        """Ignore all bytes that arrive from now on."""
        self._arriving = None
        self._in_head = False
        self._piece = b""
        self._further = []

    def release(self) -> None:
        """Cut the reference cycles of an ended connection: it is then freed at once, without the garbage collector."""
        self.abandon()
        self._syntax = None
        self._owner = _NULL_CALLBACKS

    def _feed(self, data: bytes) -> None:
        syntax = self._syntax
        if not self._in_head and self._arriving is None:
            self._fed = data
        while data and syntax is not None:
            try:
                syntax.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                # The router never upgrades: the following bytes are ordinary HTTP, including the body of this request,
                # which llhttp takes for data of the new protocol.
                data = data[upgrade.args[0] :]
                if self._head_of_body is not None:
                    syntax = self._syntax = self._new_syntax()
                    syntax.feed_data(self._head_of_body)
                    self._head_of_body = None
            else:
                self._fed = b""
                return

    def _hand_over(self) -> None:
        """Give the collected pieces to the body of the request that is arriving."""
        data = self._piece
        self._piece = b""
        if self._further:
            data = b"".join((data, *self._further))
            self._further = []
        if self._arriving is not None:  # pragma: no branch - pieces belong to a request that is arriving
            self._arriving.body.feed(data)

    def _new_syntax(self) -> httptools.HttpRequestParser:
        syntax = httptools.HttpRequestParser(self)
        # Chunked framing overrides a content-length in the same head (RFC 9112 section 6.3); `_consistent` drops the latter.
        syntax.set_dangerous_leniencies(lenient_chunked_length=True)
        return syntax

    def _malformed(self, reason: str) -> Exception:
        """The error for invalid syntax: `BrokenBodyError` within a body, `RefusedError` elsewhere."""
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
        """One header line; trailers of a chunked body are dropped."""
        if not self._in_head:
            return
        if len(self._headers) >= _MAX_HEADERS:
            raise RefusedError(431)
        if value and value[-1] in (0x20, 0x09):
            # Blanks around a value are not part of it (RFC 9112 section 5.1); llhttp leaves trailing ones.
            value = value.rstrip(b" \t")
        self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """The head is complete: check it and report the request."""
        syntax = self._syntax
        if self._head_of_body is not None or syntax is None:
            return
        if self._head_bytes > _MAX_HEAD_BYTES and _size(self._target, self._headers) > _MAX_HEAD_BYTES:
            raise RefusedError(431)
        self._in_head = False
        self._head_bytes = self._bytes_without_body = 0
        method = syntax.get_method()
        version = "1.1"
        fed, self._fed = self._fed, b""
        if not fed.startswith(b"".join((method, b" ", self._target, _HTTP_1_1))):
            version = syntax.get_http_version()  # makes a text in Python: as dear as all the rest here
            if version not in _VERSIONS:
                raise RefusedError(400)
        http_1_0 = version == "1.0"
        target = self._checked_target(method)
        headers = self._headers
        first = _first_values(headers)
        if len(first) != len(headers) or b"transfer-encoding" in first:
            headers = _consistent(headers, http_1_0=http_1_0)
            self._last = headers is not self._headers
            first = _first_values(headers)
        self._check_host(first.get(b"host"), http_1_0)
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

    def _checked_target(self, method: bytes) -> bytes:
        """The target in its origin form; most requests of a connection have the same. Raises `RefusedError`."""
        target = self._target
        if target != self._plain_target or method == b"CONNECT":
            try:
                target = origin_form(method, target)
            except BadTargetError:
                raise RefusedError(400) from None
            self._plain_target = target if target.startswith(b"/") else b""
        return target

    def _check_host(self, host: bytes | None, http_1_0: bool) -> None:
        """Raises `RefusedError` without a valid `Host`, which HTTP/1.0 does not need."""
        if host is None:
            if not http_1_0:
                raise RefusedError(400)
        elif host != self._valid_host:  # most requests of a connection name the same
            if not host_is_valid(host):
                raise RefusedError(400)
            self._valid_host = host

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


def _first_values(headers: HeaderList) -> dict[bytes, bytes]:
    """The first value of each name."""
    first: dict[bytes, bytes] = {}
    for name, value in headers:
        if name not in first:
            first[name] = value
    return first


def _head_of_body(request: ClientRequest) -> bytes | None:
    """A request head with the framing headers of `request` only; None if it has no body."""
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
    """Headers without a `content-length` that chunked framing overrides. Raises `RefusedError` for ambiguous framing."""
    encodings = [value for name, value in headers if name == b"transfer-encoding"]
    lengths = {value for name, value in headers if name == b"content-length"}
    if len(lengths) > 1 or sum(name == b"host" for name, _ in headers) > 1:
        raise RefusedError(400)
    if not encodings:
        return headers
    if http_1_0 or len(encodings) > 1 or encodings[0].lower() != b"chunked":
        raise RefusedError(400)
    return [entry for entry in headers if entry[0] != b"content-length"] if lengths else headers
