"""Opens what is needed before anything is served: UDP port, TCP ports, sockets for dialling, the channel to the gateway.

Each function is one step of the start: it pushes the closing of what it opened onto `Base.opened`; a failure raises
`StartupError`.
"""

import socket
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass

from certs import Identity as TlsIdentity
from router.config import package_settings
from router.config.option_values import SocketAddress
from router.config.settings import Settings
from router.config.startup_checks import StartupError, listen_address
from router.control_plane.worker_auth import OpenAuthenticator
from router.grpc.frames import Flood
from router.grpc.server import GrpcBindError, GrpcServer, GrpcTls
from router.ports.authentication import RemoteAuthenticator, WorkerAuthConnectError
from router.ports.registration_tunnels import WorkerTunnels
from router.process.critical_tasks import CriticalTasks
from router.process.reloads import Reloads
from router.process.served_identity import ServedIdentity
from router.process.shared_ports import SharedGrpcServer
from router.process.sockets import bind_tcp, bind_tcp_everywhere, bound_address, cause_of
from router.process.supervision import SupervisorLink
from router.registry import Identity, Registry
from router.telemetry.metrics import Metrics
from router.telemetry.tracing import Tracer
from router.tunnels.dialer import SERVER_NAME, DirectDialer
from router.tunnels.direct_tunnels import DirectTunnels
from router.tunnels.listener import ReverseListener
from router.tunnels.reverse_tunnels import ReverseTunnels
from router.tunnels.settings import TunnelSettings
from tunnel_protocol.quic.settings import QuicSettings
from tunnel_protocol.quic.tls import ClientTls, ServerTls
from tunnel_protocol.raw_quic import RAW_QUIC


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """What every step uses."""

    settings: Settings
    metrics: Metrics
    registry: Registry
    reloads: Reloads
    tasks: CriticalTasks
    opened: AsyncExitStack
    """Closes everything that has been opened."""
    tracer: Tracer | None
    """None if no traces are exported."""
    supervisor: SupervisorLink | None
    """None if this is the only process of the router."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """The TCP ports, bound and not served yet."""

    grpc: GrpcServer
    model_discovery: GrpcServer | SharedGrpcServer
    grpc_identity: ServedIdentity | None
    http: socket.socket | None
    """None with a supervisor, which says when the port is opened."""
    metrics: socket.socket
    addresses: dict[str, SocketAddress | None]
    """The bound addresses of all ports, by name."""
    advertise: SocketAddress


@dataclass(frozen=True, slots=True, kw_only=True)
class TunnelParts:
    """The reverse listener and the dialer."""

    settings: TunnelSettings
    metrics: Metrics
    listener: ReverseListener | None
    identity: ServedIdentity | None
    dialer: DirectDialer

    def make(self, identity: Identity) -> WorkerTunnels:
        """The tunnels of one registration."""
        if identity.reverse:
            return ReverseTunnels(identity, self.settings, self.metrics)
        return DirectTunnels(identity, self.settings, self.metrics, self.dialer.dial)


async def bind_reverse(
    base: Base,
    identity: ServedIdentity | None,
    authenticator: OpenAuthenticator | RemoteAuthenticator,
    quic: QuicSettings,
    tunnel_limits: TunnelSettings,
) -> tuple[ReverseListener | None, SocketAddress | None]:
    """Bind the UDP port that workers dial; returns the listener and its address, both None in direct mode."""
    settings = base.settings
    if identity is None or settings.reverse_tunnel_listen_addr is None:
        return None, None
    address = listen_address(settings, "reverse_tunnel_listen_addr")
    listener = ReverseListener(base.registry, authenticator, RAW_QUIC, tunnel_limits, base.metrics)
    tls = server_tls(identity.identity)
    try:
        host, port = await listener.listen(address.host, address.port, tls, quic)
    except OSError as error:
        options = settings.shown("reverse_tunnel_listen_addr")
        raise StartupError("failed to bind reverse tunnel listener", cause_of(error), options=options) from None
    base.opened.push_async_callback(listener.close)
    identity.log_coverage(settings, port)
    return listener, SocketAddress(host, port)


def bind_tcp_ports(base: Base, reverse_address: SocketAddress | None) -> Bound:
    """Bind control plane, model discovery, HTTP and metrics, in this order; all addresses are parsed first."""
    settings = base.settings
    grpc_address, models_address, http_address = (
        listen_address(settings, name) for name in ("listen_addr", "model_discovery_listen_addr", "http_listen_addr")
    )
    grpc_identity = ServedIdentity.load_grpc(settings, base.metrics)
    tls = None if grpc_identity is None else grpc_tls(grpc_identity.identity)
    shown = settings.shown
    grpc, bound_grpc = _bind_grpc(base, grpc_address, "gRPC", tls, shown("listen_addr"))
    models, bound_models = _bind_models(base, models_address, tls)
    http, metrics = _bind_http(base, http_address)
    bound_http = http_address if http is None else bound_address(http)
    return Bound(
        grpc=grpc,
        model_discovery=models,
        grpc_identity=grpc_identity,
        http=http,
        metrics=metrics,
        addresses={
            "reverse_tunnel": reverse_address,
            "grpc": bound_grpc,
            "model_discovery": bound_models,
            "http": bound_http,
            "metrics": bound_address(metrics),
        },
        advertise=package_settings.advertised(settings, grpc_address, bound_grpc.port),
    )


def _bind_models(
    base: Base, address: SocketAddress, tls: GrpcTls | None
) -> tuple[GrpcServer | SharedGrpcServer, SocketAddress]:
    listener, options = "model-discovery", base.settings.shown("model_discovery_listen_addr")
    if base.supervisor is None:
        return _bind_grpc(base, address, listener, tls, options)
    server = SharedGrpcServer(address, listener, options, tls, _count_floods(base.metrics))
    base.opened.push_async_callback(server.close)
    return server, address


def _bind_http(base: Base, address: SocketAddress) -> tuple[socket.socket | None, socket.socket]:
    """The HTTP port and the metrics port; with a supervisor, which owns the latter, only one on the loopback."""
    shown, opened = base.settings.shown, base.opened
    if base.supervisor is not None:
        own = SocketAddress("127.0.0.1", 0)
        return None, opened.enter_context(bind_tcp(own, "metrics", shown("metrics_port")))
    http = opened.enter_context(bind_tcp(address, "HTTP", shown("http_listen_addr")))
    port = base.settings.metrics_port
    return http, opened.enter_context(bind_tcp_everywhere(port, "metrics", shown("metrics_port")))


def _bind_grpc(
    base: Base, address: SocketAddress, listener: str, tls: GrpcTls | None, options: Sequence[str]
) -> tuple[GrpcServer, SocketAddress]:
    server = GrpcServer(tls=tls, on_flood=_count_floods(base.metrics))
    try:
        port = server.bind(str(address))
    except GrpcBindError as error:
        raise StartupError(f"failed to bind {listener} listener", cause_of(error.reason), options=options) from None
    base.opened.push_async_callback(server.close)
    return server, SocketAddress(address.host, port)


def _count_floods(metrics: Metrics) -> Callable[[Flood], None]:
    return lambda limit: metrics.grpc_connections_closed_total.inc((limit.value,))


def port_of(address: SocketAddress | None) -> int:
    """The port of `address`; 0 for None."""
    return 0 if address is None else address.port


async def connect_worker_auth(settings: Settings, authenticator: OpenAuthenticator | RemoteAuthenticator) -> None:
    """Wait until the gateway that authenticates workers is reachable."""
    if isinstance(authenticator, OpenAuthenticator):
        return
    try:
        await authenticator.connect(settings.worker_auth_connect_timeout_ms / 1000)
    except WorkerAuthConnectError as error:
        raise StartupError(
            str(error),
            f"no answer within {settings.worker_auth_connect_timeout_ms} ms",
            options=settings.shown("worker_auth_endpoint", "worker_auth_connect_timeout_ms"),
        ) from None


async def open_dialer(
    base: Base,
    trust: bytes | None,
    quic: QuicSettings,
    tunnel_limits: TunnelSettings,
    reverse_address: SocketAddress | None,
) -> DirectDialer:
    """Open the sockets for dialling; `trust` as returned by `startup_checks.outbound_trust`."""
    # In reverse mode too: a worker may register as a direct one in both modes.
    settings = base.settings
    tls = ClientTls(trust_pem=trust, server_name=SERVER_NAME, insecure=settings.quic_insecure)
    try:
        dialer = await DirectDialer.open(tls, RAW_QUIC, quic, tunnel_limits, base.metrics)
    except OSError as error:
        raise StartupError(
            "failed to initialize quic proxy", f"no UDP socket for outgoing connections: {cause_of(error)}"
        ) from None
    base.opened.push_async_callback(dialer.close)
    if reverse_address is None:
        dialer.log_buffers()  # else the listener's socket has logged the same
    dialer.own_ports.add(port_of(reverse_address))
    return dialer


def server_tls(identity: TlsIdentity) -> ServerTls:
    """`identity` in the form that the UDP port needs."""
    return ServerTls(cert_pem=identity.cert_pem, key_pem=identity.key_pem)


def grpc_tls(identity: TlsIdentity) -> GrpcTls:
    """`identity` in the form that the gRPC ports need."""
    return GrpcTls(cert_pem=identity.cert_pem, key_pem=identity.key_pem)
