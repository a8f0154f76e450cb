"""UDP sockets and connections: datagrams in and out in batches, timers, accepting and dialling.

The only asyncio file of the package. Per readiness event the socket is drained (bounded), datagrams are grouped by
connection, and every connection touched processes its events and transmits once. Calls from outside a tick mark their
connection and share one flush at the end of the loop's turn.
"""

import asyncio
import contextlib
import socket
import struct
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol, TextIO

from aioquic.buffer import Buffer, BufferReadError
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.packet import (
    QuicPacketType,
    QuicProtocolVersion,
    encode_quic_version_negotiation,
    pull_quic_header,
)

from tunnel_protocol.errors import ConnectionClosedError, StreamCreditError
from tunnel_protocol.quic.aioquic_connection import CONNECTION_ID_BYTES
from tunnel_protocol.quic.aioquic_streams import AioquicEngine, client_configuration, server_configuration
from tunnel_protocol.quic.engine import Address
from tunnel_protocol.quic.settings import QuicSettings
from tunnel_protocol.quic.stream import Stream, StreamHandler
from tunnel_protocol.quic.tls import ClientTls, ServerTls

_DATAGRAM_BYTES = 2048
_RECEIVE_BUFFER_BYTES = 4 * 1024 * 1024
_UNSENT_LIMIT = 1024
_MIN_INITIAL_BYTES = 1200
_UDP_SEGMENT = 103
_IP_MTU_DISCOVER, _IPV6_MTU_DISCOVER, _PMTUDISC_PROBE = 10, 23, 3
_MAX_SEGMENTED_BYTES = 60_000
_segment_size = struct.Struct("=H").pack
_TIMER_SLACK_S = 0.0005


class ConnectionHandler(Protocol):
    """The owner of a connection."""

    def on_stream(self, stream: Stream) -> StreamHandler | None:
        """The peer opened a bidirectional stream; None refuses it (STOP_SENDING and RESET_STREAM with code 0)."""

    def on_closed(self, error: ConnectionClosedError) -> None:
        """The connection is over, whoever ended it; the handlers of its streams have been told before."""


class Connection:
    """One established QUIC connection."""

    def __init__(self, endpoint: "Endpoint", settings: QuicSettings) -> None:
        self._endpoint = endpoint
        self._settings = settings
        self._loop = asyncio.get_running_loop()
        self._handler: ConnectionHandler | None = None
        self._engine: AioquicEngine
        self._error: ConnectionClosedError | None = None
        self._closed = self._loop.create_future()
        self._waiters: deque[asyncio.Future[None]] = deque()
        self._promised = 0
        self._established: Callable[[], None] | None = None
        self.connection_ids: set[bytes] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._wanted_at: float | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self.half_open = True
        self.heard_at = self._loop.time()
        """Loop time of the last datagram from the peer."""

    # --- for the owner ---------------------------------------------------------------------------------------------

    @property
    def closed(self) -> bool:
        """Whether the connection is over."""
        return self._error is not None

    @property
    def peer_address(self) -> tuple[str, int]:
        """Host and port of the peer, as of now."""
        address = self._engine.peer_address
        return address[0], address[1]

    @property
    def server_name(self) -> str | None:
        """The SNI a client sent, where the engine reports it."""
        return self._engine.server_name

    @property
    def free_streams(self) -> int:
        """Streams that `open_stream` would open without waiting."""
        return 0 if self._waiters else max(0, self._engine.free_streams - self._promised)

    @property
    def open_streams(self) -> int:
        """Streams of both sides whose state is not released."""
        return self._engine.open_streams

    @property
    def waiting_openers(self) -> int:
        """Callers of `open_stream` that wait for the peer's credit."""
        return len(self._waiters)

    @property
    def smoothed_rtt_ms(self) -> float:
        """Smoothed round trip of the path."""
        return self._engine.smoothed_rtt_ms

    def try_open_stream(self, handler: StreamHandler) -> Stream | None:
        """Open a stream if that is possible right now. Raises `ConnectionClosedError`."""
        if self._error is not None:
            raise self._error
        return self._engine.open_stream(handler) if self.free_streams else None

    async def open_stream(self, handler: StreamHandler) -> Stream:
        """Open a stream, after those who already wait for the peer's credit. Does not suspend if credit is free.

        Raises `StreamCreditError` if too many wait, `ConnectionClosedError` if the connection ends meanwhile.
        """
        stream = self.try_open_stream(handler)
        if stream is not None:
            return stream
        if len(self._waiters) >= self._settings.credit_queue_limit:
            raise StreamCreditError(len(self._waiters))
        waiter: asyncio.Future[None] = self._loop.create_future()
        self._waiters.append(waiter)
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self._promised -= 1
                self.on_stream_credit()  # our turn is somebody else's
            else:
                with contextlib.suppress(ValueError):
                    self._waiters.remove(waiter)
            raise
        self._promised -= 1
        if self._error is not None:
            raise self._error
        return self._engine.open_stream(handler)

    def ping(self) -> None:
        """Make the peer acknowledge something; `heard_at` tells whether it did."""
        self._engine.ping()

    def close(self, error_code: int = 0, reason: str = "") -> None:
        """Close now; handlers are told soon after. Harmless when already over."""
        self._engine.close(error_code, reason)

    async def wait_closed(self) -> ConnectionClosedError:
        """Wait until the connection is over, and tell why."""
        return await asyncio.shield(self._closed)

    # --- EngineObserver --------------------------------------------------------------------------------------------

    def on_handshake_completed(self) -> None:
        """TLS is done."""
        self.half_open = False
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        if self._established is not None:
            self._established()

    def on_peer_stream(self, stream: Stream) -> StreamHandler | None:
        """The peer opened a stream."""
        return None if self._handler is None else self._handler.on_stream(stream)

    def on_stream_credit(self) -> None:
        """Promise free streams to those who wait, in their order."""
        while self._waiters and self._engine.free_streams > self._promised:
            waiter = self._waiters.popleft()
            if not waiter.done():
                self._promised += 1
                waiter.set_result(None)

    def on_connection_id(self, connection_id: bytes, *, added: bool) -> None:
        """Keep the endpoint's routing in step."""
        self._endpoint.route(self, connection_id, added=added)

    def on_terminated(self, error: ConnectionClosedError) -> None:
        """Tell everyone who waits."""
        self._error = error
        self.half_open = False
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        waiters, self._waiters = self._waiters, deque()
        for waiter in waiters:
            if not waiter.done():
                waiter.set_exception(error)
        if not self._closed.done():
            self._closed.set_result(error)
        if self._established is not None:
            self._established()
        if self._handler is not None:
            self._handler.on_closed(error)

    def wants_transmit(self) -> None:
        """Something is to be sent at the end of this turn."""
        self._endpoint.mark(self)

    # --- for the endpoint ------------------------------------------------------------------------------------------

    def start(
        self,
        engine: AioquicEngine,
        established: Callable[[], None],
        handshake_timeout_s: float,
    ) -> None:
        """Connect the parts; `established` is called once, when the handshake is complete or has failed."""
        self._engine = engine

        def once() -> None:
            self._established = None
            established()

        self._established = once
        self._deadline = self._loop.call_later(handshake_timeout_s, self._handshake_too_slow)

    def own(self, handler: ConnectionHandler) -> None:
        """From now on `handler` is told."""
        self._handler = handler

    @property
    def engine(self) -> AioquicEngine:
        """The state machine."""
        return self._engine

    def settle(self, now: float) -> None:
        """Process what came in and send what is to be sent; then look when to come back."""
        while True:
            try:
                self._engine.process_events()
            except Exception as error:  # noqa: BLE001 - a handler's fault must not stop the other streams
                context = {"message": "a stream handler failed", "exception": error}
                self._loop.call_exception_handler(context)
            else:
                break
        self._endpoint.unmark(self)
        datagrams = self._engine.datagrams_to_send(now)
        if datagrams:
            self._endpoint.send(datagrams)
        self._wanted_at = at = self._engine.next_timer()
        if at is None:
            if self._error is not None:
                self._endpoint.forget(self)
            return
        if self._timer is None:
            self._arm(at)
        elif at < self._timer_at - _TIMER_SLACK_S:
            self._timer.cancel()
            self._arm(at)

    def abandon(self) -> None:
        """The endpoint is gone."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _arm(self, at: float) -> None:
        self._timer_at = at
        self._timer = self._loop.call_at(at, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        now = self._loop.time()
        at = self._wanted_at
        if at is None:
            return
        if at > now + _TIMER_SLACK_S:
            # The deadline has moved later since; timers are not re-armed for that.
            self._arm(at)
            return
        self._engine.handle_timer(max(now, at))
        self.settle(now)

    def _handshake_too_slow(self) -> None:
        self._deadline = None
        if self.half_open:
            self._engine.quic.give_up("handshake timed out")
            self.settle(self._loop.time())


class Endpoint:
    """One UDP socket with any number of connections on it."""

    def __init__(self, sock: socket.socket, settings: QuicSettings) -> None:
        self._socket = sock
        self._settings = settings
        self._loop = asyncio.get_running_loop()
        self._by_id: dict[bytes, Connection] = {}
        self._connections: dict[Connection, None] = {}
        self._dirty: dict[Connection, None] = {}
        self._flush_scheduled = False
        self._unsent: deque[tuple[bytes, Address]] = deque()
        self._on_connection: Callable[[Connection], ConnectionHandler] | None = None
        self._server: QuicConfiguration | None = None
        self._accepting = False
        self._closed = False
        self._segmenting = True
        self._keylog: TextIO | None = None
        if settings.keylog_path is not None:
            self._keylog = settings.keylog_path.open("a")
        self._loop.add_reader(sock.fileno(), self._readable)

    @classmethod
    async def listen(
        cls,
        host: str,
        port: int,
        tls: ServerTls,
        settings: QuicSettings,
        on_connection: Callable[[Connection], ConnectionHandler],
        engine: str = "aioquic",
    ) -> "Endpoint":
        """Bind `host` (an IP address) and accept connections; `on_connection` is called after each QUIC handshake.

        Raises `OSError` if the address is taken, `ValueError` for TLS material or an engine that cannot be used.
        """
        _check_engine(engine)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        endpoint = cls(_bound_socket(family, host, port, settings), settings)
        try:
            endpoint.replace_tls(tls)
        except BaseException:
            await endpoint.close()
            raise
        endpoint._on_connection = on_connection
        endpoint._accepting = True
        return endpoint

    @classmethod
    async def client(cls, family: socket.AddressFamily, settings: QuicSettings, engine: str = "aioquic") -> "Endpoint":
        """A socket of this family on an ephemeral port, to dial from. Raises `OSError`."""
        _check_engine(engine)
        host = "::" if family == socket.AF_INET6 else "0.0.0.0"
        return cls(_bound_socket(family, host, 0, settings), settings)

    @property
    def local_address(self) -> tuple[str, int]:
        """Host and port that are really bound."""
        name = self._socket.getsockname()
        return name[0], name[1]

    @property
    def connections(self) -> Sequence[Connection]:
        """Connections whose handshake is complete and that are not over."""
        return [c for c in self._connections if not c.half_open and not c.closed]

    def replace_tls(self, tls: ServerTls) -> None:
        """Serve this identity in new handshakes; established connections keep theirs. Raises `ValueError`."""
        self._server = server_configuration(tls, self._settings, self._keylog)

    def stop_accepting(self) -> None:
        """Ignore new connections; those that exist go on."""
        self._accepting = False

    async def connect(
        self, host_ip: str, port: int, tls: ClientTls, handler: ConnectionHandler, timeout_s: float
    ) -> Connection:
        """Dial an IP address and wait for the handshake. Raises `TimeoutError` or `ConnectionClosedError`."""
        connection = Connection(self, self._settings)
        done: asyncio.Future[None] = self._loop.create_future()
        configuration = client_configuration(tls, self._settings, self._keylog)
        engine = AioquicEngine(configuration, self._settings, connection)
        connection.start(engine, lambda: None if done.done() else done.set_result(None), timeout_s + 1)
        connection.own(handler)
        self._connections[connection] = None
        self.route(connection, engine.connection_id, added=True)
        now = self._loop.time()
        engine.connect((host_ip, port), now)
        connection.settle(now)
        try:
            async with asyncio.timeout(timeout_s):
                await done
        except BaseException:
            connection.close()
            raise
        if connection.closed:
            raise await connection.wait_closed()
        return connection

    async def close(self, error_code: int = 0, reason: str = "") -> None:
        """Close all connections at once and release the socket."""
        if self._closed:
            return
        self._accepting = False
        now = self._loop.time()
        for connection in list(self._connections):
            connection.close(error_code, reason)
            connection.settle(now)
            connection.abandon()
        self._closed = True
        self._loop.remove_reader(self._socket.fileno())
        self._loop.remove_writer(self._socket.fileno())
        self._socket.close()
        self._connections.clear()
        self._by_id.clear()
        self._dirty.clear()
        if self._keylog is not None:
            self._keylog.close()

    # --- for connections -------------------------------------------------------------------------------------------

    def route(self, connection: Connection, connection_id: bytes, *, added: bool) -> None:
        """Datagrams for this id are (no longer) for `connection`."""
        if added:
            self._by_id[connection_id] = connection
            connection.connection_ids.add(connection_id)
        else:
            self._by_id.pop(connection_id, None)
            connection.connection_ids.discard(connection_id)

    def mark(self, connection: Connection) -> None:
        """Settle `connection` at the end of this turn."""
        if not self._flush_scheduled and not self._closed:
            self._flush_scheduled = True
            self._loop.call_soon(self._flush)
        self._dirty[connection] = None

    def unmark(self, connection: Connection) -> None:
        """`connection` is being settled now."""
        self._dirty.pop(connection, None)

    def forget(self, connection: Connection) -> None:
        """`connection` is over, its closing period included."""
        connection.abandon()
        for connection_id in connection.connection_ids:
            self._by_id.pop(connection_id, None)
        self._connections.pop(connection, None)

    def send(self, datagrams: Sequence[tuple[bytes, Address]]) -> None:
        """Hand datagrams to the kernel, several at once where it can cut them apart itself."""
        if self._unsent:
            self._unsent.extend(datagrams[: _UNSENT_LIMIT - len(self._unsent)])
            return
        if self._segmenting and len(datagrams) > 1:
            datagrams = self._send_segmented(datagrams)
        sendto = self._socket.sendto
        for index, (data, address) in enumerate(datagrams):
            try:
                sendto(data, address)
            except (BlockingIOError, InterruptedError):
                self._unsent.extend(datagrams[index : index + _UNSENT_LIMIT])
                self._loop.add_writer(self._socket.fileno(), self._writable)
                return
            except OSError:
                continue  # unreachable, or too large for the path: for QUIC both are loss

    # --- socket events ---------------------------------------------------------------------------------------------

    def _readable(self) -> None:
        now = self._loop.time()
        touched: dict[Connection, None] = {}
        by_id = self._by_id
        receive = self._socket.recvfrom
        for _ in range(self._settings.receive_batch):
            try:
                data, address = receive(_DATAGRAM_BYTES)
            except (BlockingIOError, InterruptedError):
                break
            except OSError:
                continue  # an ICMP error of some earlier datagram
            if not data:
                continue
            if data[0] & 0x80:
                size = data[5] if len(data) > 5 else 0
                connection = by_id.get(data[6 : 6 + size])
            else:
                connection = by_id.get(data[1 : 1 + CONNECTION_ID_BYTES])
            if connection is None:
                connection = self._accept(data, address)
                if connection is None:
                    continue
            connection.engine.receive_datagram(data, address, now)
            touched[connection] = None
        for connection in touched:
            connection.heard_at = now
            connection.settle(now)

    def _flush(self) -> None:
        self._flush_scheduled = False
        now = self._loop.time()
        dirty, self._dirty = self._dirty, {}
        for connection in dirty:
            connection.settle(now)

    def _writable(self) -> None:
        unsent, self._unsent = self._unsent, deque()
        self._loop.remove_writer(self._socket.fileno())
        self.send(list(unsent))

    def _send_segmented(self, datagrams: Sequence[tuple[bytes, Address]]) -> Sequence[tuple[bytes, Address]]:
        """Send a leading run of equally long datagrams in one call; what is left is returned."""
        size, address = len(datagrams[0][0]), datagrams[0][1]
        run = 1
        limit = min(len(datagrams), _MAX_SEGMENTED_BYTES // size)
        while run < limit and len(datagrams[run][0]) <= size and datagrams[run][1] == address:
            run += 1
            if len(datagrams[run - 1][0]) < size:
                break  # a shorter one can only be the last of a run
        if run == 1:
            return datagrams
        ancillary = [(socket.SOL_UDP, _UDP_SEGMENT, _segment_size(size))]
        try:
            self._socket.sendmsg([data for data, _ in datagrams[:run]], ancillary, 0, address)
        except (BlockingIOError, InterruptedError):
            return datagrams
        except OSError:
            self._segmenting = False
            return datagrams
        return datagrams[run:]

    def _accept(self, data: bytes, address: Address) -> Connection | None:
        """A datagram for no known connection: the first of a new one, or nothing."""
        if not self._accepting or self._server is None or not data[0] & 0x80 or len(data) < _MIN_INITIAL_BYTES:
            return None
        try:
            header = pull_quic_header(Buffer(data=data), host_cid_length=CONNECTION_ID_BYTES)
        except (ValueError, BufferReadError):
            return None
        if header.packet_type is QuicPacketType.VERSION_NEGOTIATION:
            return None
        if header.version not in self._server.supported_versions:
            reply = encode_quic_version_negotiation(
                source_cid=header.destination_cid,
                destination_cid=header.source_cid,
                supported_versions=[QuicProtocolVersion.VERSION_1],
            )
            self.send([(reply, address)])
            return None
        if header.packet_type is not QuicPacketType.INITIAL or len(header.destination_cid) < CONNECTION_ID_BYTES:
            return None
        if (
            len(self._connections) >= self._settings.max_connections
            or self._half_open() >= self._settings.max_half_open
        ):
            return None
        connection = Connection(self, self._settings)
        engine = AioquicEngine(self._server, self._settings, connection, original_destination=header.destination_cid)
        connection.start(engine, lambda: self._established(connection), self._settings.handshake_timeout_ms / 1000)
        self._connections[connection] = None
        self.route(connection, header.destination_cid, added=True)
        self.route(connection, engine.connection_id, added=True)
        return connection

    def _half_open(self) -> int:
        return sum(1 for connection in self._connections if connection.half_open)

    def _established(self, connection: Connection) -> None:
        if not connection.closed and self._on_connection is not None:
            connection.own(self._on_connection(connection))


def _check_engine(engine: str) -> None:
    if engine != "aioquic":
        message = f"unknown QUIC engine '{engine}', expected 'aioquic'"
        raise ValueError(message)


def _bound_socket(family: socket.AddressFamily, host: str, port: int, settings: QuicSettings) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_DGRAM)
    try:
        sock.setblocking(False)
        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            sock.setsockopt(socket.SOL_SOCKET, option, _RECEIVE_BUFFER_BYTES)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1 if host != "::" or port == 0 else 0)
        with contextlib.suppress(OSError):  # not on every kernel; without it the path fragments instead of dropping
            if family == socket.AF_INET:
                sock.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _PMTUDISC_PROBE)
            else:
                sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _PMTUDISC_PROBE)
        sock.bind((host, port))
    except BaseException:
        sock.close()
        raise
    return sock
