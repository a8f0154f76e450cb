"""One QUIC connection on an asyncio event loop: its engine, its timer, and the callers that wait for streams."""

import asyncio
from collections import deque
from typing import Final, Protocol

from tunnel_protocol.errors import ConnectionClosedError, StreamCreditError
from tunnel_protocol.quic.engine import Address, Engine
from tunnel_protocol.quic.settings import QuicSettings
from tunnel_protocol.quic.stream_interface import Stream, StreamHandler

_TIMER_GRAIN_S: Final = 0.001


class ConnectionHandler(Protocol):
    """Callbacks for the owner of a connection, called synchronously from the endpoint's tick."""

    def on_stream(self, stream: Stream) -> StreamHandler | None:
        """The peer opened a bidirectional stream. Return its handler; None refuses the stream (stop and reset, code 0)."""

    def on_closed(self, error: ConnectionClosedError) -> None:
        """The connection has ended and the handlers of its streams were notified. This is the last call."""


class EndpointCallbacks:
    """What a connection asks of its endpoint, and reports to it. A class, because compiled calls through a protocol are slow."""

    def __init__(self, settings: QuicSettings) -> None:
        self.settings = settings
        self.farewell = ""
        """Reason phrase for connections that are closed without one; set at shutdown."""
        self.loop = asyncio.get_running_loop()

    def schedule(self, connection: "Connection") -> None:
        """Deliver and send for `connection` in the current tick, or at the end of the event loop's iteration."""
        raise NotImplementedError

    def established(self, connection: "Connection") -> None:
        """A handshake is complete."""
        raise NotImplementedError

    def ended(self, connection: "Connection", error: ConnectionClosedError) -> None:
        """The connection has ended; its last packets may not have been sent yet."""
        raise NotImplementedError

    def route(self, connection_id: bytes, connection: "Connection") -> None:
        """Route datagrams with this destination id to `connection`."""
        raise NotImplementedError

    def unroute(self, connection_id: bytes) -> None:
        """Remove the route of this destination id."""
        raise NotImplementedError

    def timer_fired(self, connection: "Connection", now: float) -> None:
        """The engine's deadline of `connection` has passed; `now` in seconds."""
        raise NotImplementedError


class Connection:
    """One QUIC connection. The `on_*` methods are for its engine."""

    def __init__(self, endpoint: EndpointCallbacks, handler: ConnectionHandler | None) -> None:
        self._endpoint = endpoint
        self.handler = handler
        """Receives the callbacks; for an incoming connection the endpoint sets it when the handshake completes."""
        self.engine: Engine
        self.error: ConnectionClosedError | None = None
        """Why the connection has ended; None while it has not."""
        self.connect_future: asyncio.Future[None] | None = None
        """Resolved when the handshake of a dialled connection ends; None after `Endpoint.connect` has returned."""
        self._ended: asyncio.Event | None = None
        self._waiting: deque[tuple[asyncio.Future[Stream], StreamHandler]] = deque()
        self.cids: set[bytes] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._deadline: float | None = None
        self.handshake_timer: asyncio.TimerHandle | None = None
        self.dialled: Address | None = None
        """The address that was dialled; None for an incoming connection."""
        self.last_received_at = endpoint.loop.time()
        """Loop time of the last datagram from the peer."""

    @property
    def peer_address(self) -> tuple[str, int]:
        """Host and port the peer's packets come from; changes when the peer migrates."""
        address = self.engine.peer_address
        return address[0], address[1]

    @property
    def server_name(self) -> str | None:
        """The server name (SNI) that the client sent, or None."""
        return self.engine.server_name

    @property
    def closed(self) -> bool:
        """Whether the connection has ended or is being closed; then no stream can be opened."""
        return self.error is not None or self.engine.closed

    @property
    def free_streams(self) -> int:
        """Streams that can be opened right now without waiting."""
        return 0 if self._waiting else self.engine.free_streams

    @property
    def open_streams(self) -> int:
        """Streams of both directions that have not ended on both sides."""
        return self.engine.open_streams

    @property
    def smoothed_rtt_ms(self) -> float:
        """Smoothed round-trip time of the path in milliseconds (RFC 9002 section 5.3); 0 before the first sample."""
        return self.engine.smoothed_rtt_ms

    def try_open_stream(self, handler: StreamHandler) -> Stream | None:
        """Open a bidirectional stream if there is stream credit and no earlier caller waits for it; else return None.

        Raises `ConnectionClosedError`.
        """
        if self.closed:
            raise self._closed_error()
        return None if self._waiting else self.engine.open_stream(handler)

    async def open_stream(self, handler: StreamHandler) -> Stream:
        """Open a bidirectional stream, waiting for stream credit in order of arrival.

        Raises `ConnectionClosedError`, and `StreamCreditError` if too many callers already wait. When a waiting caller is
        cancelled, its place goes to the next one; a stream that was already opened for it is reset and stopped.
        """
        stream = self.try_open_stream(handler)
        if stream is not None:
            return stream
        if len(self._waiting) >= self._endpoint.settings.credit_queue_limit:
            raise StreamCreditError(len(self._waiting))
        future: asyncio.Future[Stream] = asyncio.get_running_loop().create_future()
        place = (future, handler)
        self._waiting.append(place)
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and future.exception() is None:
                opened = future.result()
                opened.reset()
                opened.stop()
            elif place in self._waiting:
                self._waiting.remove(place)
            raise

    def close(self, error_code: int = 0, reason: str = "") -> None:
        """Close with an application error code; handlers are notified in a later tick. No effect on an ended connection."""
        self.engine.shutdown(error_code, reason or self._endpoint.farewell)

    def ping(self) -> None:
        """Send a PING, which the peer must acknowledge; `last_received_at` then shows whether it answered."""
        if not self.closed:
            self.engine.ping()

    async def wait_closed(self) -> ConnectionClosedError:
        """Wait until the connection has ended and its handlers were notified; returns the reason."""
        while self.error is None:
            if self._ended is None:
                self._ended = asyncio.Event()
            await self._ended.wait()
        return self.error

    # --- EngineCallbacks -------------------------------------------------------------------------------------------------

    def on_work(self) -> None:
        """The engine has callbacks to make or data to send."""
        self._endpoint.schedule(self)

    def on_established(self) -> None:
        """The handshake is complete."""
        self._endpoint.established(self)
        if self.connect_future is not None and not self.connect_future.done():
            self.connect_future.set_result(None)

    def on_peer_stream(self, stream: Stream) -> StreamHandler | None:
        """The peer opened a stream."""
        return None if self.handler is None else self.handler.on_stream(stream)

    def on_stream_credit(self) -> None:
        """Open streams for waiting callers of `open_stream` while the peer's stream limit allows it."""
        waiting = self._waiting
        while waiting:
            future, handler = waiting[0]
            if not future.done():
                stream = self.engine.open_stream(handler)
                if stream is None:
                    return
                future.set_result(stream)
            waiting.popleft()

    def on_connection_id(self, connection_id: bytes) -> None:
        """Route datagrams with this destination id to this connection."""
        self.cids.add(connection_id)
        self._endpoint.route(connection_id, self)

    def on_connection_id_retired(self, connection_id: bytes) -> None:
        """Remove the route of this destination id: the peer no longer uses it."""
        self.cids.discard(connection_id)
        self._endpoint.unroute(connection_id)

    def on_closed(self, error: ConnectionClosedError) -> None:
        """The connection has ended."""
        self.error = error
        waiting, self._waiting = self._waiting, deque()
        for future, _ in waiting:
            if not future.done():
                future.set_exception(error)
        connect_future = self.connect_future
        if connect_future is not None and not connect_future.done():
            connect_future.set_exception(error)
        self._endpoint.ended(self, error)
        if self.handler is not None and connect_future is None:
            self.handler.on_closed(error)
        if self._ended is not None:
            self._ended.set()

    # --- for the endpoint --------------------------------------------------------------------------------------------

    def _closed_error(self) -> ConnectionClosedError:
        return self.error or ConnectionClosedError(None, "connection is closing", by_peer=False)

    def arm(self, now: float) -> None:
        """Arm the timer for the engine's deadline. An earlier timer is kept: firing early costs less than re-arming."""
        self._deadline = at = self.engine.deadline()
        if at is None:
            return
        if self._timer is not None:
            if at >= self._timer_at - _TIMER_GRAIN_S:
                return
            self._timer.cancel()
        self._timer_at = max(at, now + _TIMER_GRAIN_S)
        self._timer = self._endpoint.loop.call_at(self._timer_at, self._fire)

    def _fire(self) -> None:
        self._timer = None
        now = self._endpoint.loop.time()
        if self._deadline is None:
            return
        if self._deadline > now + _TIMER_GRAIN_S / 2:
            self.arm(now)
            return
        self._endpoint.timer_fired(self, max(now, self._deadline))

    def disarm(self) -> None:
        """Cancel all timers of a connection that is being removed."""
        for timer in (self._timer, self.handshake_timer):
            if timer is not None:
                timer.cancel()
        self._timer = self.handshake_timer = None
        self._deadline = None
