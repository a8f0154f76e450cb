"""The reverse listener: the UDP port that workers dial, and what the decision about their handshakes needs.

See docs/protocol.md, "Reverse handshake".
"""

import asyncio
from typing import Final

import structlog

from router.ports.authentication import Authenticator
from router.telemetry.credential_failures import Credential, CredentialFailures
from router.telemetry.metrics import Metrics
from router.tunnels.incoming import IncomingConnection, Registrations
from router.tunnels.pending import PendingHandshakes
from router.tunnels.settings import TunnelSettings
from router.tunnels.tunnel import SHUTDOWN
from tunnel_protocol.errors import ConnectionClosedError
from tunnel_protocol.framing import Framing
from tunnel_protocol.quic.connection import Connection, ConnectionHandler
from tunnel_protocol.quic.endpoint import Endpoint, TickObserver
from tunnel_protocol.quic.settings import QuicSettings
from tunnel_protocol.quic.tls import ServerTls, is_certificate_error

_log = structlog.get_logger()

_REPORT_EVERY_S: Final = 10.0
"""Pause between two log lines about closed pending connections, which any unauthenticated host can cause."""


class ReverseListener:
    """Accepts connections of workers from `listen` to `stop_accepting` or `close`."""

    def __init__(
        self,
        registrations: Registrations,
        authenticator: Authenticator,
        framing: Framing,
        settings: TunnelSettings,
        metrics: Metrics,
    ) -> None:
        self.metrics = metrics
        self.credential_failures = CredentialFailures(metrics)
        self.registrations = registrations
        self.authenticator = authenticator
        self.framing = framing
        self.settings = settings
        self._pending: PendingHandshakes[IncomingConnection] = PendingHandshakes(settings.max_pending_handshakes)
        self._made_way = 0
        self._made_way_reported_at = -_REPORT_EVERY_S
        self._endpoint: Endpoint | None = None

    async def listen(self, host: str, port: int, tls: ServerTls, quic: QuicSettings) -> tuple[str, int]:
        """Bind the UDP socket; returns the address it is bound to. Raises OSError."""
        self._endpoint = await Endpoint.listen(host, port, tls, quic, self._on_connection, on_failed=self._on_failed)
        address = self._endpoint.local_address
        _log.info("reverse tunnel listener started", addr=f"{address[0]}:{address[1]}")
        return address[0], address[1]

    @property
    def connections(self) -> int:
        """Number of open connections, tunnels or not."""
        return 0 if self._endpoint is None else len(self._endpoint.connections)

    @property
    def half_open(self) -> tuple[int, int]:
        """Numbers of running QUIC handshakes: without and with a validated peer address (RFC 9000 section 8)."""
        return (0, 0) if self._endpoint is None else self._endpoint.half_open

    @property
    def pending(self) -> int:
        """Number of connections that are not tunnels yet."""
        return len(self._pending)

    def observe_ticks(self, observer: TickObserver) -> None:
        """Notify `observer` of each tick of the endpoint."""
        if self._endpoint is not None:
            self._endpoint.observe_ticks(observer)

    def replace_tls(self, tls: ServerTls) -> None:
        """Use another TLS identity from the next handshake on; open connections keep theirs."""
        if self._endpoint is not None:
            self._endpoint.replace_tls(tls)

    def stop_accepting(self) -> None:
        """Refuse new connections and keep every tunnel, for a drain."""
        if self._endpoint is not None:
            self._endpoint.stop_accepting()

    def begin_shutdown(self) -> None:
        """From now on tunnels close with the reason `shutdown` when their registration ends."""
        if self._endpoint is not None:
            self._endpoint.farewell = SHUTDOWN

    @property
    def listening(self) -> bool:
        """Whether the socket is open and receives datagrams."""
        return self._endpoint is not None and not self._endpoint.closed

    async def close(self) -> None:
        """Close all connections, tunnels included, with the reason `shutdown` and release the socket."""
        if self._endpoint is not None:
            await self._endpoint.close(0, SHUTDOWN)

    def decided(self, incoming: IncomingConnection) -> None:
        """A connection is a tunnel now, or has closed: it is no longer pending."""
        self._pending.discard(incoming)

    def identified(self, incoming: IncomingConnection, server_id: str) -> None:
        """A worker has sent its id."""
        self._makes_way(self._pending.identified(incoming, incoming.connection.peer_address[0], server_id))

    def _on_failed(self, connection: Connection, error: ConnectionClosedError) -> None:
        """The QUIC handshake failed: record it if the worker does not trust this router's certificate."""
        if error.by_peer and is_certificate_error(error.error_code):
            host = connection.peer_address[0]
            self.credential_failures.failed(Credential.ROUTER_CERTIFICATE, str(error), host=host)

    def _on_connection(self, connection: Connection) -> ConnectionHandler:
        self.credential_failures.passed(Credential.ROUTER_CERTIFICATE, host=connection.peer_address[0])
        incoming = IncomingConnection(connection, self)
        self._makes_way(self._pending.add(incoming, connection.peer_address[0]))
        return incoming

    def _makes_way(self, incoming: IncomingConnection | None) -> None:
        if incoming is None:
            return
        self._made_way += 1
        now = asyncio.get_running_loop().time()
        if now - self._made_way_reported_at >= _REPORT_EVERY_S:
            self._made_way_reported_at = now
            _log.warning(
                "too many reverse handshakes under way; the oldest make way",
                pending=len(self._pending),
                made_way=self._made_way,
            )
        incoming.make_way()
