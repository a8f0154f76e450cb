"""Opens, connects and closes the parts of the program."""

import asyncio
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from certs import Identity
from kubernetes_router.critical_tasks import CriticalTasks
from kubernetes_router.grpc_listener import GrpcListener
from kubernetes_router.grpc_tls import ServedTls, check_usable
from kubernetes_router.health import HealthServer
from kubernetes_router.identity import WatchedIdentity
from kubernetes_router.kubernetes_api import KubernetesApi, api_address
from kubernetes_router.listening import bind_tcp, bind_udp, bound_address, write_ports_file
from kubernetes_router.metrics import GRPC, TUNNELS, Metrics
from kubernetes_router.relay.quic_relay import QuicRelay
from kubernetes_router.settings import Settings
from kubernetes_router.slices import PortNames
from kubernetes_router.startup_checks import check_options, pylon_dial_addr, remote_watch_urls
from kubernetes_router.targets import HostnameTemplate, TargetList
from kubernetes_router.watch import WatchPublisher
from kubernetes_router.watcher import SliceWatcher
from router.config.option_values import SocketAddress

_log = structlog.get_logger()

_SHARE_OF_TUNNELS: Final = 0.9
"""Share of the limit for the shutdown that tunnels may take; the rest is for the end of the process."""


@dataclass(slots=True, kw_only=True)
class Application:
    """The running program. `tasks.failed` is set when a critical task ends by itself."""

    tasks: CriticalTasks
    grpc: GrpcListener
    relay: QuicRelay
    metrics: Metrics
    drain_limit_s: float
    draining: bool = False

    async def drain(self) -> None:
        """Accept nothing new and let what runs end. The caller limits the time, which tunnels may not take up."""
        self.draining = True
        deadline = asyncio.get_running_loop().time() + self.drain_limit_s * _SHARE_OF_TUNNELS
        self.relay.stop_accepting()
        await self.grpc.drain()
        left = await self.relay.drain(deadline)
        if left:
            _log.warning("tunnels are still open; their workers dial again when they miss their router", tunnels=left)


async def start(settings: Settings, environment: Mapping[str, str], opened: AsyncExitStack) -> Application:
    """Start all parts; what must be closed is pushed onto `opened`. Raises `StartupError`."""
    check_options(settings)
    address = api_address(settings, environment)
    metrics = Metrics()
    tunnels_identity = _watch_tunnels_identity(settings, metrics)
    targets = TargetList(HostnameTemplate(settings.advertised_hostname_template, settings.target_namespace))
    metrics.targets.track(lambda: len(targets.sorted_by_pod_name()))
    tasks = CriticalTasks()
    opened.push_async_callback(tasks.close)
    publisher = WatchPublisher(
        targets,
        grpc_port=settings.advertised_grpc_port,
        dial_addr=pylon_dial_addr(settings),
        remote_urls=remote_watch_urls(settings),
        heartbeat_s=settings.watch_heartbeat_ms / 1000,
    )
    grpc = GrpcListener(targets, publisher, metrics, connect_timeout_s=settings.connect_timeout_ms / 1000)
    relay = _relay(settings, targets, metrics)
    application = Application(
        tasks=tasks,
        grpc=grpc,
        relay=relay,
        metrics=metrics,
        drain_limit_s=settings.shutdown_drain_timeout_ms / 1000,
    )

    def not_ready() -> str | None:
        if application.draining:
            return "shutting down"
        if not targets.complete:
            return "no list of routers yet"
        if not targets.ready:
            return "no router is ready"
        if tunnels_identity is not None and tunnels_identity.expired():
            return "the certificate has expired"
        return None

    grpc_socket = opened.enter_context(bind_tcp(settings.listen_addr, "gRPC"))
    bind_udp(relay, settings.reverse_tunnel_listen_addr, "reverse tunnel")
    opened.push_async_callback(relay.close)
    health = HealthServer(metrics, not_ready=not_ready).listen()
    health_socket = opened.enter_context(bind_tcp(settings.health_listen_addr, "health"))
    opened.callback(health.abort)
    await health.start(health_socket)
    opened.push_async_callback(health.drain, 0)
    if tunnels_identity is not None:
        tasks.start("TLS reload", tunnels_identity.poll_every(settings.tls_poll_ms / 1000, _nothing_serves_it))
    tls = _serve_grpc_tls(settings, metrics, tasks)
    opened.callback(grpc.abort)
    await grpc.start(grpc_socket, None if tls is None else tls.context)
    await relay.start()
    tasks.start("WatchStargates publisher", publisher.run())
    source = KubernetesApi(address, namespace=settings.target_namespace, service=settings.target_service_name)
    names = PortNames(grpc=settings.grpc_port_name, quic=settings.quic_port_name)
    tasks.start("EndpointSlice watcher", SliceWatcher(source, targets, names, metrics).run())
    addresses = {
        "grpc": bound_address(grpc_socket),
        "reverse_tunnel": SocketAddress(*relay.address),
        "health": bound_address(health_socket),
    }
    _log.info("ready", **{name: str(address) for name, address in addresses.items()})
    if settings.ports_file is not None:
        write_ports_file(Path(settings.ports_file), addresses)
    return application


def _relay(settings: Settings, targets: TargetList, metrics: Metrics) -> QuicRelay:
    address = settings.reverse_tunnel_listen_addr
    relay = QuicRelay(
        address.host,
        address.port,
        resolve=targets.quic_target,
        tagged=targets.quic_targets_of_tag,
        idle_timeout_ms=settings.relay_idle_timeout_ms,
        on_outcome=lambda outcome: metrics.quic_connections_total.inc((outcome.value,)),
        on_dropped=lambda reason: metrics.datagrams_dropped_total.inc((reason.value,)),
    )
    metrics.tunnels_open.track(lambda: relay.open_tunnels)
    return relay


def _watch_tunnels_identity(settings: Settings, metrics: Metrics) -> WatchedIdentity | None:
    if settings.tls_cert_path is None or settings.tls_key_path is None:
        return None
    return WatchedIdentity(settings.tls_cert_path, settings.tls_key_path, TUNNELS, metrics, None)


def _serve_grpc_tls(settings: Settings, metrics: Metrics, tasks: CriticalTasks) -> ServedTls | None:
    if settings.grpc_tls_cert_path is None or settings.grpc_tls_key_path is None:
        return None
    identity = WatchedIdentity(settings.grpc_tls_cert_path, settings.grpc_tls_key_path, GRPC, metrics, check_usable)
    served = ServedTls(identity.identity)
    tasks.start("gRPC TLS reload", identity.poll_every(settings.tls_poll_ms / 1000, served.replace))
    return served


def _nothing_serves_it(_identity: Identity) -> None:
    """Tunnels are relayed without ending their TLS: the routers serve the new pair, metrics and readiness follow it here."""
