"""One client connection: reads requests, writes responses, and ends so that its client can read what it was answered.

Here are asyncio's transport, the timers, back-pressure in both directions and the detection of clients that leave; the order of
requests is `pipeline.py`. A client that half-closes while it waits for a response counts as gone.
"""

import asyncio
import socket
import struct
from collections.abc import Callable
from enum import IntEnum
from typing import Protocol

from router.http1.arrival import Arrival
from router.http1.pipeline import RequestHandler, RequestPipeline
from router.http1.request import ClientRequest
from router.http1.request_parser import BrokenBodyError, RefusedError, RequestParser
from router.http1.settings import ConnectionTimeouts
from router.http1.tcp_state import peer_closed

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class ConnectionCallbacks(RequestHandler, Protocol):
    """The server of a connection."""

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


class ConnectionState(IntEnum):
    """Where a connection stands; it only advances."""

    OPEN = 0
    """Requests are read and answered."""

    INPUT_ENDED = 1
    """What arrives is no longer read as requests; answers that are due still go out."""

    CLOSING = 2
    """Nothing more is answered; what is written goes out."""

    GONE = 3
    """The client has left, or half-closed: nothing can be written."""

    LOST = 4
    """The transport is closed."""


class ClientConnection(asyncio.Protocol):
    """Implements asyncio's protocol, the callbacks of parser, pipeline and arrival, and the output of a response."""

    def __init__(self, server: ConnectionCallbacks, clock: Callable[[], float], timeouts: ConnectionTimeouts) -> None:
        self._server = server
        self._timeouts = timeouts
        self._transport: asyncio.Transport
        self._loop = asyncio.get_running_loop()
        self._state = ConnectionState.OPEN
        self._parser = RequestParser(self, clock)
        self._pipeline = RequestPipeline(self, self, self._parser, server)
        self._out: list[bytes] = []
        self._reading = True
        self._discard_timer: asyncio.TimerHandle | None = None
        self._peer_closed_timer: asyncio.TimerHandle | None = None
        self._arrival: Arrival | None = None

    @property
    def idle(self) -> bool:
        """Whether nothing is being answered and no request is arriving, not even half of a head."""
        return self._pipeline.idle

    @property
    def descriptor(self) -> int:
        """Number of its socket; -1 if there is none."""
        sock = self._transport.get_extra_info("socket")
        return -1 if sock is None else int(sock.fileno())

    def _advance(self, state: ConnectionState) -> None:
        """Enter `state`, unless the connection is there or further already."""
        if state > self._state:
            self._state = state

    # --- asyncio.Protocol ------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client has connected."""
        assert isinstance(transport, asyncio.Transport) or hasattr(transport, "write")  # noqa: S101 - narrows the type
        self._transport = transport  # type: ignore[assignment]  # uvloop's transport is none of asyncio's classes
        self._server.connection_opened(self)

    def data_received(self, data: bytes) -> None:
        """Bytes of the client."""
        if self._state >= ConnectionState.INPUT_ENDED:
            return
        pipeline = self._pipeline
        try:
            self._parser.feed(data)
        except RefusedError as refusal:
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
        """The client half-closed: if it waits for a response it is gone, too. What was answered before still goes out."""
        self.flush()
        self._leave()
        self._cut_if_stalled(0)
        return False

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - how it was lost changes nothing
        """The connection is over."""
        self._leave()
        self._advance(ConnectionState.LOST)
        self._parser.release()
        self._pipeline.release()
        self._server.connection_closed(self)

    def pause_writing(self) -> None:
        """The client reads slower than we write."""
        self._pipeline.set_writable(writable=False)

    def resume_writing(self) -> None:
        """The client has caught up."""
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
        """Send the interim response that asks for the body (RFC 9110 section 10.1.1)."""
        self.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    # --- ArrivalCallbacks ------------------------------------------------------------------------------------------

    @property
    def awaits_input(self) -> bool:
        """Whether what the client sends is still of interest."""
        return self._state is ConnectionState.OPEN

    @property
    def reading(self) -> bool:
        """Whether the client is being read."""
        return self._reading

    def head_late(self) -> None:
        """The client does not end the head it has begun."""
        self._pipeline.refuse(408)

    def body_late(self, request: ClientRequest) -> None:
        """See `RequestPipeline`."""
        self._pipeline.body_late(request)

    # --- ResponseOutput --------------------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """Queue bytes; what one turn of the loop queues leaves in one write."""
        if self._state < ConnectionState.GONE:
            if not self._out:
                self._server.flush_later(self)
            self._out.append(data)

    def flush(self) -> None:
        """Hand what is queued to the transport."""
        out, self._out = self._out, []
        if not out or self._state >= ConnectionState.GONE:
            return
        if len(out) == 1:
            self._transport.write(out[0])
        else:
            self._transport.writelines(out)

    def date(self) -> bytes:
        """The value of a `date` header."""
        return self._server.date()

    @property
    def draining(self) -> bool:
        """Whether the response that is about to start has to be the last one."""
        return self._server.draining

    def response_done(self, *, keep_alive: bool) -> None:
        """The response is complete; see `RequestPipeline`."""
        if self._state < ConnectionState.GONE:
            self._pipeline.response_done(keep_alive=keep_alive)

    def response_broken(self, *, reset: bool) -> None:
        """What is queued goes out, then the connection ends."""
        if self._state >= ConnectionState.GONE:
            return
        self._pipeline.response_broken()
        if reset:
            self._reset()
        else:
            self.close()

    def _reset(self) -> None:
        """Nothing but a reset tells this client that its response is not complete."""
        self._advance(ConnectionState.CLOSING)
        self.flush()
        sock = self._transport.get_extra_info("socket")
        if sock is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self._transport.abort()

    # --- PipelineCallbacks -----------------------------------------------------------------------------------------

    def end_input(self) -> None:
        """Nothing that arrives from now on is read as a request."""
        self._advance(ConnectionState.INPUT_ENDED)

    def close(self) -> None:
        """Close once what is written has gone out."""
        self._advance(ConnectionState.CLOSING)
        if self._state < ConnectionState.GONE:
            self.flush()
            self._transport.close()
            self._cut_if_stalled(0)

    def linger(self) -> None:
        """Close, but read on for a moment: closing a socket with unread bytes would take the answer from the client."""
        self._advance(ConnectionState.CLOSING)
        self._pipeline.drop_requests()
        self.flush()
        if self._state >= ConnectionState.GONE or self._transport.is_closing():
            return
        self._transport.write_eof()
        if not self._reading:
            self._reading = True
            self._transport.resume_reading()
        self.start_discarding()

    def start_discarding(self) -> None:
        """Close when the client has had its time to end what it sends."""
        self._discard_timer = self._loop.call_later(self._timeouts.discard, self.close)

    def stop_discarding(self) -> None:
        """It has ended in time."""
        if self._discard_timer is not None:
            self._discard_timer.cancel()
            self._discard_timer = None

    def schedule_next(self) -> None:
        """Begin the next request in a later turn of the event loop."""
        self._loop.call_soon(self._next)

    def update_reading(self) -> None:
        """Read the client, or do not, as the pipeline wants it."""
        reading = self._pipeline.wants_reading
        if reading != self._reading and self._state < ConnectionState.CLOSING:
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
        """Close now if nothing runs, else after the running response; a head that is half sent gets a moment."""
        if self.idle:
            self.close()
        elif not self._pipeline.answering:
            self._loop.call_later(self._timeouts.half_sent, self._close_if_unanswered)

    def _close_if_unanswered(self) -> None:
        if not self._pipeline.answering:
            self.close()

    def abort(self) -> None:
        """Close at once, whatever runs."""
        self._transport.abort()

    # -----------------------------------------------------------------------------------------------------------------

    def _next(self) -> None:
        if self._state < ConnectionState.CLOSING:
            self._pipeline.next()

    def _leave(self) -> None:
        """The client has gone: timers end, and whoever answers hears of it."""
        if self._state >= ConnectionState.GONE:
            return
        self._advance(ConnectionState.GONE)
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
        """Closing waits for the client to take what is left; only as long as it takes something."""
        left = 0 if self._state is ConnectionState.LOST else self._transport.get_write_buffer_size()
        if left and left == left_before:
            self._transport.abort()
        elif left:
            self._loop.call_later(self._timeouts.stalled, self._cut_if_stalled, left)

    def _check_peer_closed(self) -> None:
        self._peer_closed_timer = None
        if self._reading or self._state >= ConnectionState.CLOSING:
            return
        if peer_closed(self._transport.get_extra_info("socket")):
            self._leave()
            self._transport.abort()
        else:
            self._peer_closed_timer = self._loop.call_later(self._timeouts.watch, self._check_peer_closed)
