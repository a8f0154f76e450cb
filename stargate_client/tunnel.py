"""The tunnel to one router: dials the address in its acks, does the handshake, serves, and dials again after a loss."""

import asyncio
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple, Protocol

import structlog

from stargate_client.certificate_failures import (
    CertificateFailures,
    CertificateRefusedError,
    Operation,
    failure_of_tunnel,
)
from stargate_client.settings import WorkerSettings, read_token
from tunnel_protocol.capnp import HandshakeAck
from tunnel_protocol.errors import ConnectionClosedError, ProtocolError
from tunnel_protocol.handshake import WorkerHandshake
from tunnel_protocol.quic.connection import Connection
from tunnel_protocol.quic.endpoint import Endpoint
from tunnel_protocol.quic.settings import QuicSettings
from tunnel_protocol.quic.stream_interface import Stream, StreamHandler
from tunnel_protocol.quic.tls import ClientTls, server_name_for

_log = structlog.get_logger()

ATTEMPT_S = 5.0
FIRST_BACKOFF_S = 1.0
MAX_BACKOFF_S = 30.0
STABLE_S = 60.0
RETIRED_S = 60.0
"""How long requests may go on over the tunnel of a registration that has ended."""
_RETIRED_POLL_S = 0.05


class StreamAcceptor(Protocol):
    """What serves the streams of tunnels."""

    def accept(self, stream: Stream) -> StreamHandler:
        """Create the handler of a stream that a router opened."""


class TunnelEndpoint(NamedTuple):
    """The address at which to dial a router."""

    target: str
    """Routing identity, `host:port`; determines the server name (SNI) if it differs from the address."""
    dial_address: str


class TunnelRefusedError(Exception):
    """A dial or handshake failed; `reason` is for the log."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class _Handshake(StreamHandler):
    """Handler of the handshake stream."""

    def __init__(self) -> None:
        self.machine = WorkerHandshake()
        self.answer: asyncio.Future[HandshakeAck] = asyncio.get_running_loop().create_future()

    def on_data(self, data: bytes, fin: bool) -> None:
        try:
            ack = self.machine.receive(data, fin)
        except ProtocolError as error:
            self._fail(error.reason)
        else:
            if ack is not None and not self.answer.done():
                self.answer.set_result(ack)

    def on_reset(self, error_code: int) -> None:
        self._fail(f"handshake stream reset (code {error_code})")

    def on_stop(self, error_code: int) -> None:
        """Nothing to do: the router does not need the rest of the stream."""

    def on_writable(self) -> None:
        """Not called: the message is below the high-water mark."""

    def on_connection_lost(self, error: ConnectionClosedError) -> None:
        self._fail(str(error))

    def _fail(self, reason: str) -> None:
        if not self.answer.done():
            self.answer.set_exception(TunnelRefusedError(reason))


class _TunnelConnection:
    """Handler of the connection. Streams that the router opens before it answers the handshake are served as well."""

    def __init__(self, service: StreamAcceptor) -> None:
        self._service = service
        self.closed: asyncio.Future[ConnectionClosedError] = asyncio.get_running_loop().create_future()

    def on_stream(self, stream: Stream) -> StreamHandler:
        return self._service.accept(stream)

    def on_closed(self, error: ConnectionClosedError) -> None:
        if not self.closed.done():
            self.closed.set_result(error)


class ReverseTunnel:
    """Keeps the tunnel to one router connected. Calls `on_change` when `connected` changes."""

    def __init__(
        self, settings: WorkerSettings, service: StreamAcceptor, quic: QuicSettings, on_change: Callable[[], None]
    ) -> None:
        self._settings = settings
        self._service = service
        self._quic = quic
        self._on_change = on_change
        self._endpoint: TunnelEndpoint | None = None
        self._failures: CertificateFailures | None = None
        self._changed = asyncio.Event()
        self._retired = False
        self.connected = False

    def point_to(self, endpoint: TunnelEndpoint | None) -> None:
        """Set the address to dial. The same address as before has no effect; None closes the tunnel."""
        if endpoint != self._endpoint:
            self._endpoint = endpoint
            self._failures = None if endpoint is None else CertificateFailures(Operation.TUNNEL, endpoint.dial_address)
            self._changed.set()

    def retire(self) -> None:
        """Dial no more; `run` returns when the requests of the tunnel have ended, after `RETIRED_S` at most.

        The router gives a tunnel no new requests once its registration has ended, but lets those that run go on.
        """
        self._retired = True
        self._changed.set()

    async def run(self) -> None:
        """Dial and serve until cancelled or retired."""
        backoff = FIRST_BACKOFF_S
        while not self._retired:
            self._changed.clear()
            endpoint = self._endpoint
            if endpoint is None:
                await self._changed.wait()
                continue
            lasted = await self._once(endpoint)
            if self._changed.is_set() or lasted > STABLE_S:
                backoff = FIRST_BACKOFF_S
            if not self._changed.is_set():
                try:
                    async with asyncio.timeout(backoff):
                        await self._changed.wait()
                    backoff = FIRST_BACKOFF_S
                except TimeoutError:
                    backoff = min(backoff * 2, MAX_BACKOFF_S)

    async def _once(self, endpoint: TunnelEndpoint) -> float:
        """Dial, serve until the tunnel is lost, and return for how many seconds it was connected."""
        loop = asyncio.get_running_loop()
        sockets: list[Endpoint] = []
        try:
            async with asyncio.timeout(ATTEMPT_S):
                connection, handler = await self._dial(endpoint, sockets)
                await self._shake_hands(connection)
        except TimeoutError:
            _log.warning("reverse tunnel connection timed out", dial_address=endpoint.dial_address, timeout_ms=5000)
            await _close(sockets)
            return 0
        except CertificateRefusedError as error:
            if self._failures is not None and endpoint == self._endpoint:
                self._failures.refused(error.kind)
            await _close(sockets)
            return 0
        except (TunnelRefusedError, ConnectionClosedError, OSError, ValueError) as error:
            _log.warning("reverse tunnel connection failed", dial_address=endpoint.dial_address, error=str(error))
            await _close(sockets)
            return 0
        except asyncio.CancelledError:
            await _close(sockets)
            raise
        started = loop.time()
        _log.info("reverse tunnel connection established", dial_address=endpoint.dial_address)
        self._set_connected(connected=True)
        try:
            changed = loop.create_task(self._changed.wait())
            waited_for: set[asyncio.Future[Any]] = {changed, handler.closed}
            await asyncio.wait(waited_for, return_when=asyncio.FIRST_COMPLETED)
            changed.cancel()
            if handler.closed.done():
                _log.warning("reverse tunnel connection closed", reason=str(handler.closed.result()))
            elif self._retired:
                self._set_connected(connected=False)
                await self._finish(connection, handler)
        finally:
            self._set_connected(connected=False)
            await _close(sockets)
        return loop.time() - started

    async def _finish(self, connection: Connection, handler: _TunnelConnection) -> None:
        """Wait until all streams have ended, which includes that the router has their last bytes."""
        with suppress(TimeoutError):
            async with asyncio.timeout(RETIRED_S):
                while connection.open_streams and not handler.closed.done():
                    await asyncio.wait({handler.closed}, timeout=_RETIRED_POLL_S)

    async def _dial(self, endpoint: TunnelEndpoint, sockets: list[Endpoint]) -> tuple[Connection, _TunnelConnection]:
        host, _, port = endpoint.dial_address.rpartition(":")
        found = await asyncio.get_running_loop().getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_DGRAM)
        addresses = sorted(
            {entry[4][0]: entry[0] for entry in found}.items(), key=lambda item: item[1] != socket.AF_INET
        )
        if not addresses:
            raise TunnelRefusedError("no resolved reverse tunnel address")
        tls = ClientTls(
            trust_pem=None if self._settings.trust_path is None else self._settings.trust_path.read_bytes(),
            server_name=server_name_for(endpoint.dial_address, endpoint.target),
            insecure=self._settings.quic_insecure,
        )
        failures = []
        refused = None
        for address, family in addresses:
            udp = await Endpoint.client(socket.AddressFamily(family), self._quic)
            sockets.append(udp)
            handler = _TunnelConnection(self._service)
            try:
                connection = await udp.connect(str(address), int(port), tls, handler, ATTEMPT_S)
            except ConnectionClosedError as error:
                refused = failure_of_tunnel(error) or refused
                failures.append(f"{address}: {error}")
            except OSError as error:
                failures.append(f"{address}: {error}")
            else:
                if self._failures is not None:
                    self._failures.accepted()
                return connection, handler
        if refused is not None:
            raise CertificateRefusedError(refused)
        raise TunnelRefusedError("failed to connect to every resolved address: " + "; ".join(failures))

    async def _shake_hands(self, connection: Connection) -> None:
        handshake = _Handshake()
        stream = await connection.open_stream(handshake)
        token = read_token(self._settings)
        stream.write(handshake.machine.hello(self._settings.inference_server_id, token), fin=True)
        ack = await handshake.answer
        if not ack.accepted:
            raise TunnelRefusedError(f"refused by the router: {ack.reason}")

    def _set_connected(self, *, connected: bool) -> None:
        if connected != self.connected:
            self.connected = connected
            self._on_change()


async def _close(endpoints: list[Endpoint]) -> None:
    for endpoint in endpoints:
        await endpoint.close()
