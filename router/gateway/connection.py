"""One client connection: bytes in, parsed requests out, one response at a time in the order of the requests.

llhttp (through httptools) parses; this file adds the limits, keep-alive and pipelining, back-pressure in both directions and
the detection of clients that leave. A client that half-closes while it waits for a response counts as gone.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Protocol

import httptools

from router.gateway.request import ClientRequest, RequestBody
from router.gateway.response import Response, ResponseFlow
from tunnel_protocol.head import HeaderList

MAX_HEADERS = 100
MAX_HEAD_BYTES = 417_792
MAX_TARGET_BYTES = 65_534
MAX_PIPELINED = 64
DISCARD_SECONDS = 1.0
HALF_SENT_SECONDS = 2.0
_TOKEN_OK = b"chunked"


class Requests(Protocol):
    """Who handles requests: the server with its routes."""

    def handle(self, request: ClientRequest, response: Response) -> ResponseFlow | None:
        """Answer now or later. The returned flow (None: answered already) hears about the client."""

    def connection_opened(self, connection: "ClientConnection") -> None:
        """Keep track of it."""

    def connection_closed(self, connection: "ClientConnection") -> None:
        """Forget it."""

    def date(self) -> bytes:
        """The value of a `date` header, now."""

    def flush_later(self, connection: "ClientConnection") -> None:
        """Call `connection.flush` at the end of this turn of the event loop."""

    @property
    def draining(self) -> bool:
        """Whether connections are to close after their running request."""


class _RefusedError(Exception):
    """A request that is answered by `status` without being handled, and ends its connection."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class ClientConnection(asyncio.Protocol):
    """Implements asyncio's protocol, the callbacks of httptools, and the output of a response."""

    def __init__(self, requests: Requests, clock: Callable[[], float]) -> None:
        self._requests = requests
        self._clock = clock
        self._transport: asyncio.Transport
        self._parser = httptools.HttpRequestParser(self)
        # Chunked framing wins over a content-length beside it (RFC 9112 section 6.3); `_consistent` drops the latter.
        self._parser.set_dangerous_leniencies(lenient_chunked_length=True)
        self._loop = asyncio.get_running_loop()
        # The message being parsed.
        self._target = b""
        self._headers: HeaderList = []
        self._head_bytes = 0
        self._in_head = False
        self._arriving: ClientRequest | None = None
        self._refusal: int | None = None
        # The request being answered, and those behind it.
        self._current: ClientRequest | None = None
        self._response: Response | None = None
        self._flow: ResponseFlow | None = None
        self._queue: deque[ClientRequest] = deque()
        self._out: list[bytes] = []
        self._reading = True
        self._body_reading = True
        self._writable = True
        self._closing = False
        self._gone = False
        self._discard_timer: asyncio.TimerHandle | None = None

    @property
    def idle(self) -> bool:
        """Whether nothing is being answered and no request is arriving, not even half of a head."""
        return self._current is None and self._arriving is None and not self._in_head

    # --- asyncio.Protocol ------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client has connected."""
        assert isinstance(transport, asyncio.Transport) or hasattr(transport, "write")  # noqa: S101 - narrows the type
        self._transport = transport  # type: ignore[assignment]  # uvloop's transport is none of asyncio's classes
        self._requests.connection_opened(self)

    def data_received(self, data: bytes) -> None:
        """Bytes of the client."""
        if self._closing or self._refusal is not None:
            return
        if self._in_head or self._arriving is None:
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._refuse(400)
        except httptools.HttpParserCallbackError as error:
            cause = error.__context__
            if not isinstance(cause, _RefusedError):
                raise
            self._refuse(cause.status)
        except httptools.HttpParserError as error:
            self._malformed(str(error))
        else:
            if self._head_bytes > MAX_HEAD_BYTES and (self._in_head or self._arriving is None):
                self._refuse(431)
        self._update_reading()

    def eof_received(self) -> bool:
        """The client half-closed: whoever waits for a response is gone, too."""
        self._leave()
        return False

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - how it was lost changes nothing
        """The connection is over."""
        self._leave()
        self._requests.connection_closed(self)

    def pause_writing(self) -> None:
        """The client reads slower than we write."""
        self._writable = False
        if self._flow is not None:
            self._flow.pause_response()

    def resume_writing(self) -> None:
        """The client has caught up."""
        self._writable = True
        if self._flow is not None:
            self._flow.resume_response()

    # --- httptools -------------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """A request starts."""
        self._target = b""
        self._headers = []
        self._in_head = True

    def on_url(self, url: bytes) -> None:
        """A piece of the request target."""
        self._target += url
        if len(self._target) > MAX_TARGET_BYTES:
            raise _RefusedError(414)

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header; of the trailers of a chunked body nothing is kept."""
        if not self._in_head:
            return
        if len(self._headers) >= MAX_HEADERS:
            raise _RefusedError(431)
        self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """The head is there."""
        if self._head_bytes > MAX_HEAD_BYTES:
            raise _RefusedError(431)
        self._in_head = False
        self._head_bytes = 0
        headers = _consistent(self._headers)
        if headers is None:
            raise _RefusedError(400)
        body = RequestBody(self._set_body_reading)
        request = ClientRequest(
            self._parser.get_method(),
            _origin_form(self._target),
            headers,
            http_1_0=self._parser.get_http_version() == "1.0",
            keep_alive=self._parser.should_keep_alive(),
            received_at=self._clock(),
            body=body,
        )
        if request.expects_continue:
            body.invite = self._invite_body
        self._arriving = request
        if self._current is None:
            self._begin(request)
        elif len(self._queue) >= MAX_PIPELINED:
            raise _RefusedError(400)
        else:
            self._queue.append(request)

    def on_body(self, data: bytes) -> None:
        """A piece of the body."""
        if self._arriving is not None:
            self._arriving.body.feed(data)

    def on_message_complete(self) -> None:
        """The request is complete."""
        request, self._arriving = self._arriving, None
        if request is None:
            return
        request.body.finish()
        if request is self._current and self._response is not None and self._response.over:
            self._settled()

    # --- ResponseOutput --------------------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """Queue bytes; what one turn of the loop queues leaves in one write."""
        if not self._gone:
            if not self._out:
                self._requests.flush_later(self)
            self._out.append(data)

    def flush(self) -> None:
        """Hand what is queued to the transport."""
        out, self._out = self._out, []
        if out and not self._gone:
            self._transport.write(out[0] if len(out) == 1 else b"".join(out))

    def date(self) -> bytes:
        """The value of a `date` header."""
        return self._requests.date()

    def response_done(self, *, keep_alive: bool) -> None:
        """The response is complete; a body that nobody wanted is read and dropped for a moment."""
        self._flow = None
        if self._gone:
            return
        request = self._current
        if request is None or not keep_alive or self._refusal is not None:
            self._close()
            return
        body = request.body
        if body.complete:
            self._settled()
        elif body.broken is not None or (request.expects_continue and not body.wanted):
            self._close()
        else:
            body.detach()
            self._discard_timer = self._loop.call_later(DISCARD_SECONDS, self._close)

    def response_broken(self, *, reset: bool) -> None:
        """What is queued goes out, then the connection ends."""
        self._flow = None
        if self._gone:
            return
        if reset:
            self.flush()
            self._transport.abort()
        self._close()

    def _invite_body(self) -> None:
        self.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    # --- drain -----------------------------------------------------------------------------------------------------

    def close_when_idle(self) -> None:
        """Close now if nothing runs, else after the running response; a head that is half sent gets a moment."""
        if self.idle:
            self._close()
        elif self._response is not None:
            self._response.closing = True
        else:
            self._loop.call_later(HALF_SENT_SECONDS, self._close_if_unanswered)

    def _close_if_unanswered(self) -> None:
        if self._current is None:
            self._close()

    def abort(self) -> None:
        """Close at once, whatever runs."""
        self._transport.abort()

    # -----------------------------------------------------------------------------------------------------------------

    def _begin(self, request: ClientRequest) -> None:
        response = Response(
            self,
            http_1_0=request.http_1_0,
            keep_alive=request.keep_alive,
            bodyless=request.method == b"HEAD",
        )
        response.closing = self._requests.draining
        self._current, self._response = request, response
        flow = self._requests.handle(request, response)
        if self._response is response and not response.over:
            self._flow = flow
            if flow is not None and not self._writable:
                flow.pause_response()

    def _settled(self) -> None:
        """Request and response are both complete: on to the next request."""
        if self._discard_timer is not None:
            self._discard_timer.cancel()
            self._discard_timer = None
        self._current = self._response = self._flow = None
        self._body_reading = True
        if self._requests.draining:
            self._close()
        elif self._queue:
            # Not from within the response before: a long pipeline must not become a deep stack.
            self._loop.call_soon(self._next)
        elif self._refusal is not None:
            self._answer_refusal()
        self._update_reading()

    def _next(self) -> None:
        if self._current is None and self._queue and not self._gone and not self._closing:
            self._begin(self._queue.popleft())
            self._update_reading()

    def _malformed(self, reason: str) -> None:
        if self._arriving is not None and self._arriving is self._current:
            self._refusal = 400
            self._arriving.body.fail(reason)
            if self._response is not None and self._response.over:
                self._close()
            return
        self._refuse(400)

    def _refuse(self, status: int) -> None:
        """Answer with `status` once everything before is answered, then close."""
        self._refusal = status
        self._arriving = None
        if self._current is None and not self._queue:
            self._answer_refusal()

    def _answer_refusal(self) -> None:
        response = Response(self, http_1_0=False, keep_alive=False, bodyless=False)
        response.send(self._refusal or 400, [])

    def _leave(self) -> None:
        if self._gone:
            return
        self._gone = True
        if self._discard_timer is not None:
            self._discard_timer.cancel()
            self._discard_timer = None
        flow, self._flow = self._flow, None
        response, self._response = self._response, None
        if response is not None and not response.over:
            if flow is not None:
                flow.client_gone()
            response.abandoned()
        self._current = self._arriving = None
        self._queue.clear()
        self._out = []

    def _close(self) -> None:
        self._closing = True
        if not self._gone:
            self.flush()
            self._transport.close()

    def _set_body_reading(self, reading: bool) -> None:
        self._body_reading = reading
        self._update_reading()

    def _update_reading(self) -> None:
        reading = self._body_reading and not self._queue
        if reading != self._reading and not self._gone and not self._closing:
            self._reading = reading
            if reading:
                self._transport.resume_reading()
            else:
                self._transport.pause_reading()


def _origin_form(target: bytes) -> bytes:
    """Path and query of a target that may be in absolute form (RFC 9112 section 3.2.2) or carry a fragment."""
    if not target.startswith(b"/"):
        scheme, separator, rest = target.partition(b"://")
        if separator and scheme.lower() in (b"http", b"https"):
            path = rest.partition(b"/")[2]
            target = b"/" + path
    return target.partition(b"#")[0]


def _consistent(headers: HeaderList) -> HeaderList | None:
    """Headers without a `content-length` that chunked framing overrides; None for framing that could be read in two ways."""
    encodings = [value for name, value in headers if name == b"transfer-encoding"]
    lengths = {value for name, value in headers if name == b"content-length"}
    if len(lengths) > 1:
        return None
    if not encodings:
        return headers
    if len(encodings) > 1 or encodings[0].strip().lower() != _TOKEN_OK:
        return None
    return [entry for entry in headers if entry[0] != b"content-length"] if lengths else headers
