"""One client connection: its requests are answered one at a time and in their order, and it ends so that answers can be read.

Here are keep-alive and pipelining, back-pressure in both directions and the detection of clients that leave. A client that
half-closes while it waits for a response counts as gone.
"""

import asyncio
import socket
import struct
from collections import deque
from collections.abc import Callable
from typing import Protocol

from router.http1.arrival import Arrival
from router.http1.request import ClientRequest
from router.http1.request_parser import BrokenBodyError, RefusedError, RequestParser
from router.http1.response import Response, ResponseFlow
from router.http1.settings import ConnectionTimeouts
from router.http1.tcp_state import has_left
from tunnel_protocol.limit import Limit

PIPELINED = Limit("http1.pipelined_requests", pieces=64)
"""Requests that wait on one connection behind the one that is answered."""

_MAX_PIPELINED = PIPELINED.pieces or 0
PIPELINED_BEFORE_PAUSE = 8
_STALLED = "request body stalled"
_REFUSALS = {408: "request head stalled", 414: "request target too long", 431: "request head too large"}
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


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

    def refused(self, status: int, reason: str) -> None:
        """A request was answered without being handled."""

    def flush_later(self, connection: "ClientConnection") -> None:
        """Call `connection.flush` at the end of this turn of the event loop."""

    @property
    def draining(self) -> bool:
        """Whether connections are to close after their running request."""


class ClientConnection(asyncio.Protocol):
    """Implements asyncio's protocol, the owner of what is parsed, and the output of a response."""

    def __init__(self, requests: Requests, clock: Callable[[], float], timeouts: ConnectionTimeouts) -> None:
        self._requests = requests
        self._timeouts = timeouts
        self._transport: asyncio.Transport
        self._parser = RequestParser(self, clock)
        self._loop = asyncio.get_running_loop()
        self._refusal: int | None = None
        self._input_over = False
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
        self._lost = False
        self._discard_timer: asyncio.TimerHandle | None = None
        self._watch: asyncio.TimerHandle | None = None
        self._arrival: Arrival | None = None
        self._given_up = False

    @property
    def idle(self) -> bool:
        """Whether nothing is being answered and no request is arriving, not even half of a head."""
        return self._current is None and not self._queue and self._parser.between_requests

    @property
    def descriptor(self) -> int:
        """Number of its socket; -1 if there is none."""
        sock = self._transport.get_extra_info("socket")
        return -1 if sock is None else int(sock.fileno())

    # --- asyncio.Protocol ------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client has connected."""
        assert isinstance(transport, asyncio.Transport) or hasattr(transport, "write")  # noqa: S101 - narrows the type
        self._transport = transport  # type: ignore[assignment]  # uvloop's transport is none of asyncio's classes
        self._requests.connection_opened(self)

    def data_received(self, data: bytes) -> None:
        """Bytes of the client."""
        if self._input_over:
            return
        try:
            self._parser.feed(data)
        except RefusedError as refusal:
            self._refuse(refusal.status)
        except BrokenBodyError as broken:
            self._broken(broken.request, broken.reason)
        if self._queue:
            if self._current is None:
                self._next()
            self._update_reading()
        if not self._parser.between_requests and self.awaits_input:
            if self._arrival is None:
                timeouts = self._timeouts
                self._arrival = Arrival(self, self._parser, self._loop, timeouts.head, timeouts.body)
            self._arrival.piece()

    def eof_received(self) -> bool:
        """The client half-closed: whoever waits for a response is gone, too. What was answered before still goes out."""
        self.flush()
        self._leave()
        self._cut_if_stalled(0)
        return False

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - how it was lost changes nothing
        """The connection is over."""
        self._lost = True
        self._leave()
        self._parser.release()
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

    # --- RequestOwner ----------------------------------------------------------------------------------------------

    def request_begun(self, request: ClientRequest) -> None:
        """It is answered when those before it are."""
        if len(self._queue) > _MAX_PIPELINED:
            raise RefusedError(400)
        self._queue.append(request)

    def request_complete(self, request: ClientRequest) -> None:
        """If it was answered before, the next one may begin."""
        if request is self._current and self._response is not None and self._response.over:
            self._settled()

    def set_body_reading(self, reading: bool) -> None:
        """A body waits for its taker, or no longer does."""
        self._body_reading = reading
        self._update_reading()

    def invite_body(self) -> None:
        """Send the interim response that asks for the body (RFC 9110 section 10.1.1)."""
        self.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    # --- ArrivalOwner ----------------------------------------------------------------------------------------------

    @property
    def awaits_input(self) -> bool:
        """Whether what the client sends is still of interest."""
        return not (self._input_over or self._gone or self._closing)

    @property
    def reading(self) -> bool:
        """Whether the client is being read."""
        return self._reading

    def head_late(self) -> None:
        """The client does not end the head it has begun."""
        self._refuse(408)

    def body_late(self, request: ClientRequest) -> None:
        """The client has stopped sending a body that is waited for."""
        response, flow = self._response, self._flow
        if request is not self._current or response is None:
            self._broken(request, _STALLED)
        elif not response.started and not response.over:
            self._requests.refused(408, _STALLED)
            self._input_over = self._given_up = True
            self._flow = None
            if flow is not None:
                flow.client_gone()
            response.send(408, [])

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
        if not out or self._gone:
            return
        if len(out) == 1:
            self._transport.write(out[0])
        else:
            self._transport.writelines(out)

    def date(self) -> bytes:
        """The value of a `date` header."""
        return self._requests.date()

    @property
    def closing(self) -> bool:
        """Whether the response that is about to start has to be the last one."""
        return self._given_up or self._requests.draining

    def response_done(self, *, keep_alive: bool) -> None:
        """The response is complete; a body that nobody wanted is read and dropped for a moment."""
        self._flow = None
        if self._gone:
            return
        request = self._current
        if request is None:  # it was refused by its head
            self._linger()
        elif request.body.complete:
            if keep_alive:
                self._settled()
            elif request.last or self._queue or self._refusal is not None:
                self._linger()  # the client has sent more, or may
            else:
                self._close()
        elif not keep_alive or request.body.broken is not None or _withheld(request):
            self._linger()
        else:
            request.body.detach()
            self._discard_timer = self._loop.call_later(self._timeouts.discard, self._close)

    def response_broken(self, *, reset: bool) -> None:
        """What is queued goes out, then the connection ends."""
        self._flow = None
        if self._gone:
            return
        if reset:
            self._reset()
        else:
            self._close()

    def _reset(self) -> None:
        """Nothing but a reset tells this client that its response is not complete."""
        self._input_over = self._closing = True
        self.flush()
        sock = self._transport.get_extra_info("socket")
        if sock is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self._transport.abort()

    # --- drain -----------------------------------------------------------------------------------------------------

    def close_when_idle(self) -> None:
        """Close now if nothing runs, else after the running response; a head that is half sent gets a moment."""
        if self.idle:
            self._close()
        elif self._current is None:
            self._loop.call_later(self._timeouts.half_sent, self._close_if_unanswered)

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
        self._current, self._response = request, response
        flow = self._requests.handle(request, response)
        if not response.over:  # else it was answered, or its client is gone
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

    def _broken(self, request: ClientRequest, reason: str) -> None:
        """The body of a request broke off: answered in its turn, by whoever wants the body."""
        self._input_over = True
        request.body.fail(reason)
        if request is self._current and self._response is not None and self._response.over:
            self._linger()

    def _refuse(self, status: int) -> None:
        """Answer with `status` once everything before is answered, then close."""
        self._refusal = status
        self._input_over = True
        self._parser.abandon()
        if self._current is None and not self._queue:
            self._answer_refusal()

    def _answer_refusal(self) -> None:
        status = self._refusal or 400
        self._requests.refused(status, _REFUSALS.get(status, "malformed request"))
        response = Response(self, http_1_0=False, keep_alive=False, bodyless=False)
        response.send(status, [])

    def _leave(self) -> None:
        if self._gone:
            return
        self._gone = True
        arrival, self._arrival = self._arrival, None
        if arrival is not None:
            arrival.stop()
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        if self._discard_timer is not None:
            self._discard_timer.cancel()
            self._discard_timer = None
        flow, self._flow = self._flow, None
        response, self._response = self._response, None
        if response is not None and not response.over:
            if flow is not None:
                flow.client_gone()
            response.abandoned()
        self._current = None
        self._parser.abandon()
        self._queue.clear()
        self._out = []

    def _linger(self) -> None:
        """Close, but read on for a moment: closing a socket with unread bytes would take the answer from the client."""
        self._input_over = self._closing = True
        self._current = self._response = None
        self._parser.abandon()
        self._queue.clear()
        self.flush()
        if self._gone or self._transport.is_closing():
            return
        if self._transport.can_write_eof():
            self._transport.write_eof()
        if not self._reading:
            self._reading = True
            self._transport.resume_reading()
        self._discard_timer = self._loop.call_later(self._timeouts.discard, self._close)

    def _close(self) -> None:
        self._input_over = self._closing = True
        if not self._gone:
            self.flush()
            self._transport.close()
            self._cut_if_stalled(0)

    def _cut_if_stalled(self, left_before: int) -> None:
        """Closing waits for the client to take what is left; only as long as it takes something."""
        left = 0 if self._lost else self._transport.get_write_buffer_size()
        if left and left == left_before:
            self._transport.abort()
        elif left:
            self._loop.call_later(self._timeouts.stalled, self._cut_if_stalled, left)

    def _update_reading(self) -> None:
        # A client whose bytes are not read cannot be seen to leave, so a few requests may wait before it is paused.
        reading = self._body_reading and len(self._queue) <= PIPELINED_BEFORE_PAUSE
        if reading != self._reading and not self._gone and not self._closing:
            self._reading = reading
            if reading:
                if self._arrival is not None:
                    self._arrival.read_on()
                self._transport.resume_reading()
            else:
                self._transport.pause_reading()
                if self._watch is None:
                    self._watch = self._loop.call_later(self._timeouts.watch, self._look_whether_left)

    def _look_whether_left(self) -> None:
        self._watch = None
        if self._reading or self._gone or self._closing:
            return
        if has_left(self._transport.get_extra_info("socket")):
            self._leave()
            self._transport.abort()
        else:
            self._watch = self._loop.call_later(self._timeouts.watch, self._look_whether_left)


def _withheld(request: ClientRequest) -> bool:
    """Whether the client still waits to be asked for its body, and has not been."""
    return request.expects_continue and not request.body.wanted and not request.body.complete
