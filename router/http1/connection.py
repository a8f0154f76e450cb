"""One client connection: reads requests, writes responses, and closes so that the client can still read the last response.

Here are asyncio's transport, the timers, back-pressure in both directions and the detection of clients that close; the order
of requests is kept by `pipeline.py`. A client that half-closes while it waits for a response is treated as if it had closed.
"""

import asyncio
import socket
import struct
from collections.abc import Callable
from enum import IntEnum
from typing import Final

from mypy_extensions import mypyc_attr

from router.http1.arrival import Arrival
from router.http1.pipeline import PipelineCallbacks, RequestHandler, RequestPipeline
from router.http1.request import ClientRequest
from router.http1.request_parser import BrokenBodyError, RefusedError, RequestParser
from router.http1.settings import ConnectionTimeouts
from router.http1.tcp_state import peer_closed

_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)


@mypyc_attr(allow_interpreted_subclasses=True)
class ConnectionCallbacks(RequestHandler):
    """What a connection asks of its server, and what it reports to it."""

    __slots__ = ("draining", "refusing")

    def __init__(self) -> None:
        self.draining = False
        """Whether a response that starts now is the last one of its connection, and says so."""
        self.refusing = False
        """Whether connections have to close as soon as they are idle."""

    def connection_opened(self, connection: "ClientConnection") -> None:
        """A client has connected."""
        raise NotImplementedError

    def connection_closed(self, connection: "ClientConnection") -> None:
        """The transport of `connection` is closed."""
        raise NotImplementedError

    def date(self) -> bytes:
        """The value of the `date` header now."""
        raise NotImplementedError

    def flush_later(self, connection: "ClientConnection") -> None:
        """Call `connection.flush` at the end of this turn of the event loop."""
        raise NotImplementedError


class ConnectionState(IntEnum):
    """The state of a connection; it only increases."""

    OPEN = 0
    """Requests are read and answered."""

    INPUT_ENDED = 1
    """Bytes that arrive are no longer read as requests; the responses that are due are still sent."""

    CLOSING = 2
    """No further response is begun; the bytes already written are still sent."""

    GONE = 3
    """The client has closed or half-closed: nothing can be written."""

    LOST = 4
    """The transport is closed."""


# Bound once: looking a member up in its enum takes as long as ten such comparisons (Python 3.11), and these run for every chunk.
_OPEN: Final = ConnectionState.OPEN
_INPUT_ENDED: Final = ConnectionState.INPUT_ENDED
_LOST: Final = ConnectionState.LOST
_GONE: Final = ConnectionState.GONE
_CLOSING: Final = ConnectionState.CLOSING


class ClientConnection(PipelineCallbacks):
    """Implements asyncio's protocol, the callbacks of parser, pipeline and arrival, and the output of a response."""

    def __init__(
        self,
        server: ConnectionCallbacks,
        clock: Callable[[], float],
        timeouts: ConnectionTimeouts,
        *,
        close_unread: bool,
    ) -> None:
        """`close_unread`: see `HttpSettings`."""
        self._server = server
        self._timeouts = timeouts
        self._transport: asyncio.Transport
        self._loop = asyncio.get_running_loop()
        self._state = _OPEN
        self._parser = RequestParser(self, clock)
        self._pipeline = RequestPipeline(self, self._parser, server, close_unread=close_unread)
        self._out: list[bytes] = []
        self._reading = True
        self._discard_timer: asyncio.TimerHandle | None = None
        self._peer_closed_timer: asyncio.TimerHandle | None = None
        self._arrival: Arrival | None = None

    @property
    def idle(self) -> bool:
        """Whether no request is being answered and none is arriving, not even a part of a head."""
        return self._pipeline.idle

    @property
    def descriptor(self) -> int:
        """File descriptor of the socket; -1 if there is none."""
        sock = self._transport.get_extra_info("socket")
        return -1 if sock is None else int(sock.fileno())

    def _advance(self, state: ConnectionState) -> None:
        """Enter `state`, unless the connection is in it or in a later one."""
        if state > self._state:
            self._state = state

    # --- asyncio.Protocol ------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client has connected."""
        assert isinstance(transport, asyncio.Transport) or hasattr(transport, "write")  # noqa: S101 - narrows the type
        self._transport = transport  # type: ignore[assignment]  # uvloop's transport is none of asyncio's classes
        self._server.connection_opened(self)

    def data_received(self, data: bytes) -> None:
        """Parse bytes that the client sent."""
        if self._state >= _INPUT_ENDED:
            return
        pipeline = self._pipeline
        try:
            self._parser.feed(data)
        except RefusedError as refusal:
            if self._state < _CLOSING:  # not if an answer to what came before has just closed the connection
                pipeline.refuse(refusal.status)
        except BrokenBodyError as broken:
            pipeline.body_broken(broken.request, broken.reason)
        if pipeline.waiting:
            self._next()
            self.update_reading()
        if not self._parser.between_requests and self.awaits_input:
            if self._arrival is None:
                timeouts = self._timeouts
                self._arrival = Arrival(self, self._parser, self._loop, timeouts.head, timeouts.body)
            self._arrival.piece()

    def eof_received(self) -> bool:
        """The client half-closed: if it waits for a response, treat it as closed. Bytes already written are still sent."""
        self.flush()
        self._leave()
        self._cut_if_stalled(0)
        return False

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - how it was lost changes nothing
        """The transport is closed."""
        self._leave()
        self._advance(_LOST)
        self._parser.release()
        self._pipeline.release()
        self._server.connection_closed(self)

    def pause_writing(self) -> None:
        """The transport's write buffer is above its high-water mark: pause the response."""
        self._pipeline.set_writable(writable=False)

    def resume_writing(self) -> None:
        """The transport's write buffer is below its low-water mark: resume the response."""
        self._pipeline.set_writable(writable=True)

    # --- RequestCallbacks ------------------------------------------------------------------------------------------

    def request_begun(self, request: ClientRequest) -> None:
        """See `RequestPipeline`."""
        self._pipeline.request_begun(request)

    def request_complete(self, request: ClientRequest) -> None:
        """See `RequestPipeline`."""
        self._pipeline.request_complete(request)

    def set_body_reading(self, reading: bool) -> None:
        """See `RequestPipeline`."""
        self._pipeline.set_body_reading(reading)

    def invite_body(self) -> None:
        """Send `100 Continue`, which asks the client for the body (RFC 9110 section 10.1.1)."""
        self.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    # --- ArrivalCallbacks ------------------------------------------------------------------------------------------

    @property
    def awaits_input(self) -> bool:
        """Whether bytes that the client sends are still read as requests."""
        return self._state is _OPEN

    @property
    def reading(self) -> bool:
        """Whether the connection reads from the client."""
        return self._reading

    def head_late(self) -> None:
        """The head that is arriving was not complete within the limit: answer 408."""
        self._pipeline.refuse(408)

    def body_late(self, request: ClientRequest) -> None:
        """See `RequestPipeline`."""
        self._pipeline.body_late(request)

    # --- ResponseOutput --------------------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """Queue bytes; all bytes queued in one turn of the event loop are written at once."""
        if self._state is _OPEN or self._state < _GONE:  # the first comparison is the cheaper one
            if not self._out:
                self._server.flush_later(self)
            self._out.append(data)

    def flush(self) -> None:
        """Write the queued bytes to the transport."""
        out, self._out = self._out, []
        if not out or self._state >= _GONE:
            return
        if len(out) == 1:
            self._transport.write(out[0])
        else:
            self._transport.writelines(out)

    @property
    def peer(self) -> str:
        """The IP address of the client; empty if it is not known (any more)."""
        address = self._transport.get_extra_info("peername")
        return str(address[0]) if isinstance(address, tuple) else ""

    def date(self) -> bytes:
        """The value of the `date` header now."""
        return self._server.date()

    @property
    def draining(self) -> bool:
        """Whether the response that is about to start has to be the last one of the connection."""
        return self._server.draining

    @property
    def closes_when_idle(self) -> bool:
        """Whether the connection has to close after the running response; see `PipelineCallbacks`."""
        return self._server.refusing

    def response_done(self, *, keep_alive: bool) -> None:
        """The response is complete; see `RequestPipeline`."""
        if self._state < _GONE:
            self._pipeline.response_done(keep_alive=keep_alive)

    def response_broken(self, *, reset: bool) -> None:
        """Write the queued bytes, then end the connection: by a reset if `reset`, else by a close."""
        if self._state >= _GONE:
            return
        self._pipeline.response_broken()
        if reset:
            self._reset()
        else:
            self.close()

    def _reset(self) -> None:
        """End by a TCP reset, the only sign by which this client can see that its response is not complete."""
        self._advance(_CLOSING)
        self.flush()
        sock = self._transport.get_extra_info("socket")
        if sock is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self._transport.abort()

    # --- PipelineCallbacks -----------------------------------------------------------------------------------------

    def end_input(self) -> None:
        """Read no bytes that arrive from now on as requests."""
        self._advance(_INPUT_ENDED)

    def close(self) -> None:
        """Close when the bytes already written have been sent."""
        self._advance(_CLOSING)
        if self._state < _GONE:
            self.flush()
            self._transport.close()
            self._cut_if_stalled(0)

    def linger(self) -> None:
        """Close, but read and drop for a limited time: unread bytes would cause a reset (RFC 9112 section 9.6)."""
        self._advance(_CLOSING)
        self._pipeline.drop_requests()
        self.flush()
        if self._state >= _GONE or self._transport.is_closing():
            return
        if self._transport.can_write_eof():  # TLS has no half-close
            self._transport.write_eof()
        if not self._reading:
            self._reading = True
            self._transport.resume_reading()
        self.start_discarding()

    def start_discarding(self) -> None:
        """Start the timer that closes the connection if the client does not end the body in time."""
        self._discard_timer = self._loop.call_later(self._timeouts.discard, self.close)

    def stop_discarding(self) -> None:
        """Cancel the timer of `start_discarding`: the body has ended in time."""
        if self._discard_timer is not None:
            self._discard_timer.cancel()
            self._discard_timer = None

    def schedule_next(self) -> None:
        """Begin the next request in a later turn of the event loop."""
        self._loop.call_soon(self._next)

    def update_reading(self) -> None:
        """Resume or pause reading from the client, by `RequestPipeline.wants_reading`."""
        reading = self._pipeline.wants_reading
        if reading != self._reading and self._state < _CLOSING:
            self._reading = reading
            if reading:
                if self._arrival is not None:
                    self._arrival.read_on()
                self._transport.resume_reading()
            else:
                self._transport.pause_reading()
                if self._peer_closed_timer is None:
                    self._peer_closed_timer = self._loop.call_later(self._timeouts.watch, self._check_peer_closed)

    # --- drain -----------------------------------------------------------------------------------------------------

    def close_when_idle(self) -> None:
        """Close now if idle, else after the running response; a head that has begun to arrive gets a limited time."""
        if self.idle:
            self.close()
        elif not self._pipeline.answering:
            self._loop.call_later(self._timeouts.half_sent, self._close_if_unanswered)

    def _close_if_unanswered(self) -> None:
        if not self._pipeline.answering:
            self.close()

    def abort(self) -> None:
        """Close at once, even while a request is being answered."""
        self._transport.abort()

    # -----------------------------------------------------------------------------------------------------------------

    def _next(self) -> None:
        if self._state < _CLOSING:
            self._pipeline.next()

    def _leave(self) -> None:
        """The client has closed: cancel the timers and notify the producer of the running response."""
        if self._state >= _GONE:
            return
        self._advance(_GONE)
        arrival, self._arrival = self._arrival, None
        if arrival is not None:
            arrival.stop()
        if self._peer_closed_timer is not None:
            self._peer_closed_timer.cancel()
            self._peer_closed_timer = None
        self.stop_discarding()
        self._pipeline.client_gone()
        self._out = []

    def _cut_if_stalled(self, left_before: int) -> None:
        """Abort if the client has read none of the `left_before` bytes since the last check; else check again later."""
        left = 0 if self._state is _LOST else self._transport.get_write_buffer_size()
        if left and left == left_before:
            self._transport.abort()
        elif left:
            self._loop.call_later(self._timeouts.stalled, self._cut_if_stalled, left)

    def _check_peer_closed(self) -> None:
        self._peer_closed_timer = None
        if self._reading or self._state >= _CLOSING:
            return
        if peer_closed(self._transport.get_extra_info("socket")):
            self._leave()
            self._transport.abort()
        else:
            self._peer_closed_timer = self._loop.call_later(self._timeouts.watch, self._check_peer_closed)
