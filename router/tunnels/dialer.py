"""Dials direct inference servers from one UDP socket per address family; a connection set is established whole or not.

raw-quic needs no handshake after that of QUIC: the connection is usable at once. See docs/protocol.md, "Addresses".
"""

import socket
import time
from random import Random
from typing import Final

import structlog

from router.ports.tunnels import TunnelError
from router.telemetry.credential_failures import Credential, CredentialFailures
from router.telemetry.metrics import Metrics
from router.tunnels.addresses import DialTarget, dial_target
from router.tunnels.dial_policy import DialPolicy, check_dialled_address
from router.tunnels.direct_tunnels import DirectTunnels
from router.tunnels.settings import TunnelSettings
from router.tunnels.tunnel import SHUTDOWN, Tunnel
from tunnel_protocol.errors import ConnectionClosedError
from tunnel_protocol.framing import Framing
from tunnel_protocol.quic.endpoint import Endpoint, TickObserver
from tunnel_protocol.quic.settings import QuicSettings
from tunnel_protocol.quic.stream_interface import Stream
from tunnel_protocol.quic.tls import ClientTls, is_certificate_error

_log = structlog.get_logger()

SERVER_NAME: Final = "stargate"
"""The name that a direct worker's certificate must contain, independent of its address."""


class DirectDialer:
    """Owns the outgoing sockets; created by `open`."""

    def __init__(
        self,
        endpoints: dict[int, Endpoint],
        tls: ClientTls,
        framing: Framing,
        settings: TunnelSettings,
        metrics: Metrics,
    ) -> None:
        self._endpoints = endpoints
        self._credential_failures = CredentialFailures(metrics)
        self._tls = tls
        self._framing = framing
        self._settings = settings
        self._policy = DialPolicy(time.monotonic, Random())  # noqa: S311 - nothing is kept secret by it
        self.own_ports: set[int] = set()
        """Further UDP ports of this router, which are not dialled at an address of this host."""

    @classmethod
    async def open(
        cls,
        tls: ClientTls,
        framing: Framing,
        quic: QuicSettings,
        settings: TunnelSettings,
        metrics: Metrics,
    ) -> "DirectDialer":
        """Bind a socket for IPv4 and, where the host has IPv6, one for it. Raises OSError if IPv4 fails."""
        endpoints = {4: await Endpoint.client(socket.AF_INET, quic)}
        try:
            endpoints[6] = await Endpoint.client(socket.AF_INET6, quic)
        except OSError as error:
            _log.warning("IPv6 relay endpoint unavailable; continuing with IPv4-only relay endpoint", error=str(error))
        return cls(endpoints, tls, framing, settings, metrics)

    async def dial(self, tunnels: DirectTunnels) -> list[Tunnel]:
        """Dial a complete set for this registration. If any connection fails, closes the others and raises `TunnelError`."""
        target = dial_target(tunnels.identity.url)
        check_dialled_address(target, is_ours=self._is_ours)
        self._policy.begin(target)
        dialed: list[Tunnel] = []
        failed = False
        try:
            while len(dialed) < self._settings.direct_connections:
                dialed.append(await self._connect(target, tunnels))
        except BaseException as error:
            failed = isinstance(error, TunnelError)
            for tunnel in dialed:
                tunnel.release()
            raise
        finally:
            self._policy.end(target, failed=failed)
        return dialed

    def _is_ours(self, ip: str, port: int) -> bool:
        """Whether `ip` is an address of this host and `port` a UDP port of this router."""
        ports = {endpoint.local_address[1] for endpoint in self._endpoints.values()} | self.own_ports
        return port in ports and _is_local(ip)

    @property
    def connections(self) -> int:
        """Number of open connections."""
        return sum(len(endpoint.connections) for endpoint in self._endpoints.values())

    def observe_ticks(self, observer: TickObserver) -> None:
        """Notify `observer` of each tick of the endpoints."""
        for endpoint in self._endpoints.values():
            endpoint.observe_ticks(observer)

    def log_buffers(self) -> None:
        """Log a warning if the sockets' buffers are too small for high load (see `UdpSocket.log_buffers`)."""
        self._endpoints[4].log_buffers()

    def begin_shutdown(self) -> None:
        """From now on tunnels close with the reason `shutdown` when their registration ends."""
        for endpoint in self._endpoints.values():
            endpoint.farewell = SHUTDOWN

    async def close(self) -> None:
        """Close all connections with the reason `shutdown`, and release the sockets."""
        for endpoint in self._endpoints.values():
            await endpoint.close(0, SHUTDOWN)

    async def _connect(self, target: DialTarget, tunnels: DirectTunnels) -> Tunnel:
        endpoint = self._endpoints.get(target.version)
        if endpoint is None:
            raise TunnelError(f"no IPv{target.version} socket to dial {target.ip} from")
        worker_id = tunnels.identity.inference_server_id
        handler = _OutgoingConnection(tunnels)
        try:
            connection = await endpoint.connect(
                target.ip, target.port, self._tls, handler, self._settings.connect_timeout_ms / 1000
            )
        except TimeoutError as slow:
            raise TunnelError("quic connect timed out") from slow
        except ConnectionClosedError as error:
            if is_certificate_error(error.error_code) and not error.by_peer:
                self._credential_failures.failed(
                    Credential.WORKER_CERTIFICATE, str(error), host=target.ip, inference_server_id=worker_id
                )
            raise TunnelError(f"quic connect failed: {error}") from error
        self._credential_failures.passed(Credential.WORKER_CERTIFICATE, host=target.ip, inference_server_id=worker_id)
        handler.tunnel = Tunnel(connection, self._framing, worker_id)
        return handler.tunnel


def _is_local(ip: str) -> bool:
    """Whether `ip` is an address of this host: only those can be bound."""
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((ip, 0))
    except OSError:
        return False
    return True


class _OutgoingConnection:
    """Handler of a dialled connection; the worker must not open streams on it."""

    def __init__(self, tunnels: DirectTunnels) -> None:
        self._tunnels = tunnels
        self.tunnel: Tunnel | None = None

    def on_stream(self, stream: Stream) -> None:
        """Refuse the stream."""

    def on_closed(self, error: ConnectionClosedError) -> None:  # noqa: ARG002 - why it closed changes nothing here
        """Notify the connection set."""
        if self.tunnel is not None:
            self._tunnels.connection_closed(self.tunnel)
