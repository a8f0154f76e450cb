"""A UDP socket and its QUIC connections on an asyncio event loop; only this module and `connection.py` use asyncio.

One tick: read the datagrams that have arrived, pass each to the engine of its connection, let the engines call their
handlers, then let every connection that has data send once. What is written between ticks is sent together at the end of
the event loop's iteration.
"""

import asyncio
from collections.abc import Callable
from enum import Enum, auto
from typing import Final, Protocol

import structlog

from tunnel_protocol.errors import ConnectionClosedError
from tunnel_protocol.quic.admission import Admission, Admitted
from tunnel_protocol.quic.aioquic_handshake import AioquicFactory
from tunnel_protocol.quic.connection import Connection, ConnectionHandler, EndpointCallbacks
from tunnel_protocol.quic.engine import Address, EngineFactory, destination_cid
from tunnel_protocol.quic.first_packets import ACCEPTS_PER_TURN, FirstPacketQueue
from tunnel_protocol.quic.settings import QuicSettings
from tunnel_protocol.quic.sources import Source
from tunnel_protocol.quic.tls import ClientTls, ServerTls
from tunnel_protocol.quic.udp import UdpSocket

_log = structlog.get_logger()

_READ_AGAIN_S: Final = 0.05
"""Seconds to pause after reading the socket has failed many times in a row, for example for lack of memory."""
_FAREWELL_S: Final = 0.2
"""Seconds that `Endpoint.close` waits for a full socket buffer to accept the last packets."""


class TickObserver(Protocol):
    """Notified before and after the handlers of a tick are called, so that it can process together what they left."""

    def tick_begins(self) -> None:
        """The endpoint starts to call handlers."""

    def tick_ends(self) -> None:
        """All handlers of the tick were called; no datagram has been sent yet."""


class TickState(Enum):
    """The endpoint's state between two ticks."""

    IDLE = auto()
    """No callback and no send is pending."""

    PLANNED = auto()
    """`_flush` is scheduled for the next iteration of the event loop."""

    RUNNING = auto()
    """Datagrams are being received or sent, or handlers called; work scheduled meanwhile is done in this tick."""


# Bound once: looking a member up in its enum takes as long as ten comparisons (Python 3.11), and these run in every tick.
_IDLE: Final = TickState.IDLE
_PLANNED: Final = TickState.PLANNED
_RUNNING: Final = TickState.RUNNING


class Endpoint(EndpointCallbacks):
    """A UDP socket with its connections; made by `listen` or `client`."""

    def __init__(
        self,
        udp: UdpSocket,
        settings: QuicSettings,
        factory: EngineFactory,
        on_connection: Callable[[Connection], ConnectionHandler] | None,
        on_failed: Callable[[Connection, ConnectionClosedError], None] | None = None,
    ) -> None:
        super().__init__(settings)
        self._udp = udp
        self._factory = factory
        self._on_connection = on_connection
        self._on_failed = on_failed
        self._accepting = on_connection is not None
        self._routes: dict[bytes, Connection] = {}
        self._connections: dict[Connection, None] = {}
        self._admission: Admission[Connection] = Admission(factory, settings.max_half_open)
        self._half_open = self._admission.half_open
        self._first_packets = FirstPacketQueue()
        self._ended: dict[Connection, None] = {}
        """Connections that have ended and are kept for the closing or draining period (RFC 9000 section 10.2)."""
        self._accepts_left = 0
        self._accepts_planned = False
        self._dialled: dict[Address, dict[Connection, None]] = {}
        """Dialled connections by peer address; a stateless reset can only come from one of these addresses."""
        self._touched: dict[Connection, None] = {}
        self._tick = _IDLE
        self._watching_writable = False
        self._closed = False
        self._observer: TickObserver | None = None
        self.loop.add_reader(udp.fileno(), self._readable)

    @classmethod
    async def listen(
        cls,
        host: str,
        port: int,
        tls: ServerTls,
        settings: QuicSettings,
        on_connection: Callable[[Connection], ConnectionHandler],
        on_failed: Callable[[Connection, ConnectionClosedError], None] | None = None,
    ) -> "Endpoint":
        """Bind and accept. `on_connection` is called for every completed QUIC handshake, `on_failed` for every failed one.

        Raises OSError if the address cannot be bound, ValueError if the TLS identity cannot be used.
        """
        factory = AioquicFactory(settings, tls)
        udp = UdpSocket.bind(host, port, settings.max_datagram_bytes)
        udp.log_buffers()
        return cls(udp, settings, factory, on_connection, on_failed)

    @classmethod
    async def client(cls, family: int, settings: QuicSettings) -> "Endpoint":
        """An endpoint that only dials, for addresses of one family. Raises OSError."""
        factory = AioquicFactory(settings, None)
        return cls(UdpSocket.unbound(family, settings.max_datagram_bytes), settings, factory, None)

    async def connect(
        self, host_ip: str, port: int, tls: ClientTls, handler: ConnectionHandler, timeout_s: float
    ) -> Connection:
        """Dial and complete the handshake within `timeout_s` seconds.

        Raises TimeoutError, `ConnectionClosedError` (the peer or TLS refused), ValueError (`tls` cannot be used) or
        OSError (not an address of this endpoint's family). `handler` is not called for a handshake that failed.
        """
        if self._closed:
            raise ConnectionClosedError(None, "endpoint is closed", by_peer=False)
        connection = Connection(self, handler)
        address = self._udp.resolve(host_ip, port)
        connect_future = connection.connect_future = self.loop.create_future()
        connection.engine = self._factory.connect(address, tls, connection, self.loop.time())
        self._connections[connection] = None
        self._dialled.setdefault(address, {})[connection] = None
        connection.dialled = address
        self.schedule(connection)
        try:
            async with asyncio.timeout(timeout_s):
                await connect_future
        except (TimeoutError, asyncio.CancelledError):
            connection.close()
            raise
        if connection.error is not None:
            raise connection.error
        connection.connect_future = None
        return connection

    @property
    def closed(self) -> bool:
        """Whether the socket is closed."""
        return self._closed

    @property
    def local_address(self) -> tuple[str, int]:
        """Host and port the socket is bound to."""
        return self._udp.address

    @property
    def half_open(self) -> tuple[int, int]:
        """Numbers of incomplete incoming handshakes: of clients without and with a proved address."""
        return len(self._half_open.unproved), len(self._half_open.proved)

    @property
    def connections(self) -> list[Connection]:
        """Connections whose handshake is complete and that have not ended."""
        return [c for c in self._connections if c.engine.established and not c.closed]

    def log_buffers(self) -> None:
        """See `UdpSocket.log_buffers`."""
        self._udp.log_buffers()

    def observe_ticks(self, observer: TickObserver) -> None:
        """Notify `observer` of each tick; replaces an earlier observer."""
        self._observer = observer

    def replace_tls(self, tls: ServerTls) -> None:
        """Use another TLS identity from the next handshake on. Raises ValueError and keeps the old one if it is unusable."""
        self._factory.replace_tls(tls)

    def stop_accepting(self) -> None:
        """Refuse new connections; existing ones are kept."""
        self._accepting = False

    async def close(self, error_code: int = 0, reason: str = "") -> None:
        """Close all connections with this code and reason, and release the socket."""
        if self._closed:
            return
        self._accepting = False
        for connection in list(self._connections):
            connection.close(error_code, reason)
        self._flush()
        if self._udp.blocked:
            await asyncio.sleep(_FAREWELL_S)
        self._closed = True
        self.loop.remove_reader(self._udp.fileno())
        if self._watching_writable:
            self.loop.remove_writer(self._udp.fileno())
        for connection in list(self._connections):
            connection.engine.abandon(ConnectionClosedError(error_code, reason, by_peer=False))
            connection.engine.deliver()
            self._forget(connection)
        self._udp.close()
        self._factory.close()

    # --- for connections ---------------------------------------------------------------------------------------------

    def schedule(self, connection: Connection) -> None:
        """Deliver and send for `connection` in the current tick, or at the end of the event loop's iteration."""
        self._touched[connection] = None
        if self._tick is _IDLE:
            self._tick = _PLANNED
            self.loop.call_soon(self._flush)

    def established(self, connection: Connection) -> None:
        """A handshake is complete; for an incoming one, call `on_connection` to get the handler."""
        self._half_open.discard(connection)
        if connection.handshake_timer is not None:
            connection.handshake_timer.cancel()
            connection.handshake_timer = None
        if connection.handler is None and self._on_connection is not None:
            connection.handler = self._on_connection(connection)

    def ended(self, connection: Connection, error: ConnectionClosedError) -> None:
        """The connection has ended; its last packets may not have been sent yet."""
        # A half-open connection still counts as half open until it is removed, because a closing connection uses memory.
        self._ended[connection] = None
        if connection.handler is None and self._on_failed is not None:
            self._on_failed(connection, error)

    def route(self, connection_id: bytes, connection: Connection) -> None:
        """Route datagrams with this destination id to `connection`."""
        self._routes[connection_id] = connection

    def unroute(self, connection_id: bytes) -> None:
        """Remove the route of this destination id."""
        self._routes.pop(connection_id, None)

    def timer_fired(self, connection: Connection, now: float) -> None:
        """The engine's deadline of `connection` has passed; `now` in seconds."""
        connection.engine.handle_timer(now)
        self._touched[connection] = None
        self._flush()

    # --- the tick ----------------------------------------------------------------------------------------------------

    def _readable(self) -> None:
        now = self.loop.time()
        routes, touched = self._routes, self._touched
        self._accepts_left = ACCEPTS_PER_TURN
        # What the engines schedule before `_flush` is part of this tick.
        before, self._tick = self._tick, _RUNNING
        for data, address in self._udp.receive(self.settings.receive_batch):
            connection = routes.get(data[1:9] if data and data[0] < 0x80 else destination_cid(data))
            if connection is None:
                connection = self._accept(data, address, now)
                if connection is None:
                    continue
            else:
                try:
                    connection.engine.receive(data, address, now)
                except Exception:  # noqa: BLE001 - logged there
                    self._fault(connection)
                connection.last_received_at = now
            touched[connection] = None
        self._flush()
        if before is _PLANNED:
            self._tick = _PLANNED  # that flush is still to come
        if self._udp.unreadable and not self._closed:
            # The event loop would call this again at once in a busy loop.
            self.loop.remove_reader(self._udp.fileno())
            self.loop.call_later(_READ_AGAIN_S, self._read_again)

    def _read_again(self) -> None:
        if not self._closed:
            self.loop.add_reader(self._udp.fileno(), self._readable)

    def _accept(self, data: bytes, address: Address, now: float) -> Connection | None:
        """Process a datagram of no known connection; returns a connection that it started or reset, else None."""
        if not data:
            return None
        if self._on_connection is None:
            return self._reset_by_peer(data, address)
        accepting = self._accepting and (len(self._connections) < self.settings.max_connections or bool(self._ended))
        decision = self._admission.decide(data, address, now, accepting=accepting)
        if decision is None:
            return None
        if isinstance(decision, bytes):
            self._udp.send([(decision, address)])
            return None
        if not self._accepts_left or self._first_packets:
            self._first_packets.add(destination_cid(data), data, address, decision)
            self._plan_accepts()
            return None
        return self._begin(data, address, decision, now)

    def _plan_accepts(self) -> None:
        if not self._accepts_planned:
            self._accepts_planned = True
            self.loop.call_soon(self._accept_waiting)

    def _accept_waiting(self) -> None:
        """Start handshakes of clients whose first datagram waits, as many as one event loop iteration allows."""
        self._accepts_planned = False
        if self._closed:
            return
        now = self.loop.time()
        before, self._tick = self._tick, _RUNNING
        self._accepts_left = ACCEPTS_PER_TURN
        while self._accepts_left:
            first = self._first_packets.take()
            if first is None:
                break
            connection = self._begin(first.datagrams[0], first.address, first.admitted, now)
            if connection is not None:
                for data in first.datagrams[1:]:
                    self._give(connection, data, first.address, now)
                self._touched[connection] = None
        self._flush()
        if before is _PLANNED:
            self._tick = _PLANNED  # that flush is still to come
        if self._first_packets:
            self._plan_accepts()

    def _give(self, connection: Connection, data: bytes, address: Address, now: float) -> None:
        try:
            connection.engine.receive(data, address, now)
        except Exception:  # noqa: BLE001 - logged there
            self._fault(connection)

    def _begin(self, data: bytes, address: Address, admitted: Admitted, now: float) -> Connection | None:
        """Start a handshake; None if a limit is reached or the datagram does not start one."""
        if self._half_open.full and not self._make_way(admitted.source, now):
            # No answer: the client retransmits its Initial packet, and a place may be free then.
            return None
        self._accepts_left -= 1
        if len(self._connections) >= self.settings.max_connections and not self._forget_one_ended():
            return None
        connection = Connection(self, None)
        try:
            engine = self._factory.accept(data, address, connection, now, admitted.original_cid)
        except Exception:  # noqa: BLE001 - an internal error drops this datagram only
            _log.exception("first datagram of a connection could not be taken")
            return None
        if engine is None:
            return None
        connection.engine = engine
        if engine.closed:
            # The first packet was refused: send CONNECTION_CLOSE once and keep no state.
            engine.deliver()
            self._udp.send_runs(engine.poll(now))
            engine.abandon(ConnectionClosedError(None, "refused", by_peer=False))
            self._forget(connection)
            return None
        connection.handshake_timer = self.loop.call_later(
            self.settings.handshake_timeout_ms / 1000, self._handshake_too_slow, connection
        )
        self._connections[connection] = None
        self._half_open.add(connection, admitted.source, proved=admitted.original_cid is not None, now=now)
        return connection

    def _forget_one_ended(self) -> bool:
        """Remove the connection that ended first; False if none has ended."""
        connection = next(iter(self._ended), None)
        if connection is None:
            return False
        connection.engine.abandon(ConnectionClosedError(None, "made way for another connection", by_peer=False))
        self._forget(connection)
        return True

    def _make_way(self, source: Source, now: float) -> bool:
        """Evict a half-open connection for a new one; False if none may be evicted."""
        connection = self._half_open.makes_way(source, now)
        if connection is None:
            return False
        connection.engine.abandon(ConnectionClosedError(None, "made way for another handshake", by_peer=False))
        self._half_open.discard(connection)
        self.schedule(connection)
        return True

    def _reset_by_peer(self, data: bytes, address: Address) -> Connection | None:
        """The dialled connection that this datagram resets, if it is a stateless reset (RFC 9000 section 10.3.1); else None."""
        if data[0] & 0xC0 != 0x40:
            return None
        for connection in self._dialled.get(address, ()):
            if connection.engine.is_reset(data):
                connection.engine.abandon(ConnectionClosedError(None, "stateless reset", by_peer=True))
                return connection
        return None

    def _handshake_too_slow(self, connection: Connection) -> None:
        connection.engine.abandon(ConnectionClosedError(None, "handshake timed out", by_peer=False))
        self.schedule(connection)

    def _flush(self) -> None:
        self._tick = _RUNNING
        if self._closed:
            return
        polled = self._call_handlers()
        now = self.loop.time()
        udp = self._udp
        for connection in polled:
            if udp.blocked:
                self._touched[connection] = None
                continue
            try:
                runs = connection.engine.poll(now)
            except Exception:  # noqa: BLE001 - logged there
                self._fault(connection)
                continue
            if runs:
                udp.send_runs(runs)
                if udp.too_large:
                    connection.engine.datagram_refused(udp.too_large, now)
                    udp.too_large = 0
            connection.arm(now)
            if connection.engine.finished:
                self._forget(connection)
        self._tick = _IDLE
        if udp.blocked:
            self._await_writable()
        elif self._touched:
            self._tick = _PLANNED
            self.loop.call_soon(self._flush)

    def _call_handlers(self) -> "dict[Connection, None]":
        """Let the engines of all touched connections call back; returns these connections."""
        observer = self._observer
        if observer is not None:
            observer.tick_begins()
        called: dict[Connection, None] = {}
        while self._touched:
            batch, self._touched = self._touched, {}
            for connection in batch:
                try:
                    connection.engine.deliver()
                except Exception:  # noqa: BLE001 - logged there
                    self._fault(connection)
            called.update(batch)
        if observer is not None:
            try:
                observer.tick_ends()
            except Exception:  # noqa: BLE001 - an error of the observer must not end tunnels
                _log.exception("observer of ticks failed")
        return called

    def _await_writable(self) -> None:
        if not self._watching_writable:
            self._watching_writable = True
            self.loop.add_writer(self._udp.fileno(), self._writable)

    def _writable(self) -> None:
        self._udp.send_backlog()
        if not self._udp.blocked:
            self._watching_writable = False
            self.loop.remove_writer(self._udp.fileno())
            self._flush()

    def _fault(self, connection: Connection) -> None:
        """End one connection after an internal error; the others are not affected."""
        _log.exception("connection failed")
        connection.engine.abandon(ConnectionClosedError(None, "internal error", by_peer=False))
        self._touched[connection] = None

    def _forget(self, connection: Connection) -> None:
        connection.disarm()
        self._connections.pop(connection, None)
        self._ended.pop(connection, None)
        self._half_open.discard(connection)
        if connection.dialled is not None:
            dialled = self._dialled[connection.dialled]
            del dialled[connection]
            if not dialled:
                del self._dialled[connection.dialled]
            connection.dialled = None
        for connection_id in connection.cids:
            self._routes.pop(connection_id, None)
        connection.cids.clear()
        connection.engine.discard()
        connection.handler = None
