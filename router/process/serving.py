"""The last step of a start: creates the services from the opened parts and serves them."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from certs import Identity as TlsIdentity
from router.config import package_settings, startup_checks
from router.control_plane.discovery import Discovery, Lookup
from router.control_plane.model_discovery import MODEL_DISCOVERY, ModelDiscovery
from router.control_plane.replicas import Replica
from router.control_plane.service import CONTROL_PLANE, ControlPlane
from router.control_plane.watch import WatchCell, WatchPublisher, remote_watch_urls
from router.control_plane.worker_auth import OpenAuthenticator
from router.http1.server import HttpServer
from router.ports.authentication import RemoteAuthenticator
from router.process.freed_memory import FreedMemory, find_trim
from router.process.live_page import LivePage
from router.process.opening import Base, Bound, TunnelParts, grpc_tls, server_tls
from router.process.policy import Policy
from router.process.polling import every
from router.process.ports_file import write_ports_file
from router.process.readiness import NotReady, Readiness
from router.process.router import Router
from router.process.shared_ports import SharedGrpcServer, SharedHttpPort, SharedPorts
from router.process.supervision import Serving, State, SupervisorLink
from router.process.tick_observers import TickObservers
from router.process.warm_up import WarmUp, WarmUpTimer, active_backends
from router.proxy.proxy import Proxy
from router.proxy.request_trace import ProxyTracing
from router.proxy.routes import Routes
from router.telemetry.loop_lag import LoopLag
from router.telemetry.metrics import Metrics
from tunnel_protocol.quic.endpoint import TickObserver

if TYPE_CHECKING:
    from router.process.openai_front import OpenAiPort

_log = structlog.get_logger()


async def serve(
    base: Base,
    bound: Bound,
    tunnels: TunnelParts,
    policy: Policy,
    authenticator: OpenAuthenticator | RemoteAuthenticator,
    lookup: Lookup,
    front: "OpenAiPort | None",
) -> Router:
    """Serve all ports, write the ports file, and return the router, which owns the stack then. Raises `StartupError`."""
    settings, metrics, tasks, opened = base.settings, base.metrics, base.tasks, base.opened
    watch = WatchCell()
    control_plane = _add_services(base, bound, tunnels, authenticator, watch)
    publisher = _make_publisher(base, bound, lookup, watch)
    page = LivePage(base, bound, tunnels, policy)
    operators = page.server()
    opened.callback(operators.stop)
    _track_gauges(base, tunnels)
    loop_lag = _start_timers(metrics, opened)
    warm_up = _warm_up(base, bound)
    _poll_files(base, bound, tunnels, policy)
    tasks.start_loop("WatchStargates publisher", publisher.run())
    await operators.start(bound.metrics)
    tasks.start("metrics server", operators.serve())
    _log.info("metrics server listening", addr=str(bound.addresses["metrics"]))
    await bound.grpc.start()
    tasks.start("control-plane gRPC server", bound.grpc.wait())
    await bound.model_discovery.start()
    tasks.start("model-discovery gRPC server", bound.model_discovery.wait())
    http, added_ports, readiness = await _serve_http(base, bound, tunnels, policy, loop_lag, warm_up, page, front)
    loop_lag.on_measured = readiness.poll
    if settings.ports_file is not None:
        write_ports_file(Path(settings.ports_file), bound.addresses)
    if warm_up.warming():
        _log.info("serving, and not ready before the warm-up is over", **_addresses(bound))
    warm_up.start()
    if base.supervisor is not None:
        _follow(base.supervisor, base, bound, lookup, publisher, http, added_ports, readiness, loop_lag)
    return Router(
        tasks=tasks,
        metrics=metrics,
        servers=(http, *(port.server for port in added_ports)),
        operators=operators,
        control_plane=control_plane,
        grpc=(bound.grpc, bound.model_discovery),
        listener=tunnels.listener,
        dialer=tunnels.dialer,
        warm_up=warm_up,
        lame_duck_s=settings.lame_duck_ms / 1000,
        opened=opened.pop_all(),
    )


def _follow(
    supervisor: SupervisorLink,
    base: Base,
    bound: Bound,
    lookup: Lookup,
    publisher: WatchPublisher,
    http: HttpServer,
    added_ports: Sequence[SharedHttpPort],
    readiness: Readiness,
    loop_lag: LoopLag,
) -> None:
    """Tell the supervisor how it goes, and do what it says."""
    http_address = bound.addresses["http"]
    if http_address is None or not isinstance(bound.model_discovery, SharedGrpcServer):
        raise TypeError("the shared ports were not opened for a supervisor")

    def report() -> None:
        supervisor.send(State(ready=readiness.ready(), listening=shared.listening))

    def on_siblings(siblings: tuple[Replica, ...]) -> None:
        publisher.discovery.siblings = siblings
        publisher.publish_soon()

    options = base.settings.shown("http_listen_addr")
    shared = SharedPorts(http, http_address, options, bound.model_discovery, report, added_ports)
    base.tasks.start_loop("shared ports", shared.run())
    supervisor.on_siblings = on_siblings
    supervisor.on_listen = shared.ask
    loop_lag.on_measured = report
    supervisor.send(Serving(_addresses(bound), lookup.own))
    report()
    supervisor.start()


def _add_services(
    base: Base,
    bound: Bound,
    tunnels: TunnelParts,
    authenticator: OpenAuthenticator | RemoteAuthenticator,
    watch: WatchCell,
) -> ControlPlane:
    control_plane = ControlPlane(
        base.registry,
        authenticator,
        tunnels.make,
        watch,
        package_settings.control_plane(base.settings, bound.advertise, bound.addresses["reverse_tunnel"]),
        base.metrics,
    )
    bound.grpc.add_service(CONTROL_PLANE, control_plane.methods())
    bound.model_discovery.add_service(MODEL_DISCOVERY, ModelDiscovery(base.registry).methods())
    return control_plane


def _make_publisher(base: Base, bound: Bound, lookup: Lookup, watch: WatchCell) -> WatchPublisher:
    settings = base.settings
    return WatchPublisher(
        Discovery(lookup, base.metrics, grace_s=settings.discovery_grace_ms / 1000),
        watch,
        poll_ms=settings.dns_poll_ms,
        heartbeat_ms=settings.watch_heartbeat_ms,
        remote_urls=remote_watch_urls(
            startup_checks.remote_watch_urls(settings),
            advertise_addr=str(bound.advertise),
            dns_name=settings.stargate_discovery_dns_name,
        ),
        pylon_dial_addr=startup_checks.pylon_dial_addr(settings),
    )


def _track_gauges(base: Base, tunnels: TunnelParts) -> None:
    """Register the gauges whose values are read from other parts at each scrape."""
    metrics, registry, listener, dialer = base.metrics, base.registry, tunnels.listener, tunnels.dialer

    def reverse_tunnels_up() -> int:
        return sum(one.identity.reverse and one.tunnels.healthy() for one in registry.registrations())

    metrics.reverse_tunnels_up.track(reverse_tunnels_up)
    if listener is not None:
        metrics.quic_connections.track(lambda: listener.connections, ("incoming",))
        metrics.quic_handshakes_half_open.track(lambda: listener.half_open[0], ("false",))
        metrics.quic_handshakes_half_open.track(lambda: listener.half_open[1], ("true",))
        metrics.reverse_handshakes_pending.track(lambda: listener.pending)
    metrics.quic_connections.track(lambda: dialer.connections, ("outgoing",))


def _start_timers(metrics: Metrics, opened: AsyncExitStack) -> LoopLag:
    loop_lag = LoopLag(metrics.event_loop_lag_seconds)
    loop_lag.start()
    opened.callback(loop_lag.stop)
    freed_memory = FreedMemory(find_trim())
    freed_memory.start()
    opened.callback(freed_memory.stop)
    return loop_lag


def _addresses(bound: Bound) -> dict[str, str]:
    """The bound addresses of all ports by name, for the log."""
    return {name: str(address) for name, address in bound.addresses.items() if address is not None}


def _warm_up(base: Base, bound: Bound) -> WarmUpTimer:
    settings = base.settings
    warm_up = WarmUp(
        warm_up_ms=settings.readiness_warmup_ms,
        sample_interval_ms=settings.readiness_stabilization_sample_interval_ms,
        window=settings.readiness_stabilization_window,
        now=asyncio.get_running_loop().time(),
    )
    timer = WarmUpTimer(
        warm_up,
        partial(active_backends, base.registry),
        lambda: _log.info("ready", **_addresses(bound)),
    )
    base.opened.callback(timer.stop)
    return timer


def _poll_files(base: Base, bound: Bound, tunnels: TunnelParts, policy: Policy) -> None:
    """Start to poll the files that may change while the router runs: certificates and the policy."""
    settings = base.settings

    def start_polling(name: str, interval_ms: int, poll: Callable[[], Awaitable[None]]) -> None:
        base.reloads.poll(name, poll)
        base.tasks.start_loop(name, every(interval_ms / 1000, poll, name, base.metrics))

    identity, listener, grpc_identity = tunnels.identity, tunnels.listener, bound.grpc_identity
    if identity is not None and identity.mounted:

        def serve_to_workers(new: TlsIdentity) -> None:
            if listener is not None:
                listener.replace_tls(server_tls(new))

        start_polling("reverse tunnel TLS reload", settings.tls_poll_ms, partial(identity.poll, serve_to_workers))
    if grpc_identity is not None:

        def serve_on_grpc(new: TlsIdentity) -> None:
            for server in (bound.grpc, bound.model_discovery):
                server.replace_tls(grpc_tls(new))

        start_polling("gRPC TLS reload", settings.tls_poll_ms, partial(grpc_identity.poll, serve_on_grpc))
    if policy.watched:
        start_polling("load balancer config reload", settings.lb_config_poll_ms, policy.poll)


async def _serve_http(
    base: Base,
    bound: Bound,
    tunnels: TunnelParts,
    policy: Policy,
    loop_lag: LoopLag,
    warm_up: WarmUpTimer,
    page: LivePage,
    front: "OpenAiPort | None",
) -> tuple[HttpServer, tuple[SharedHttpPort, ...], Readiness]:
    settings, metrics = base.settings, base.metrics
    proxy = Proxy(base.registry, policy.selector, metrics, package_settings.proxy(settings), time.monotonic)
    proxy.request_ends = page.requests
    if base.tracer is not None:
        proxy.tracing = ProxyTracing(base.tracer, base.registry, proxy.clock)
    debug_config = package_settings.debug_config(settings, bound.addresses, bound.advertise)
    routes = Routes(
        proxy,
        base.registry,
        metrics,
        is_ready=lambda: readiness.ready(),
        debug_config=lambda: debug_config,
    )
    http = HttpServer(routes, time.monotonic, package_settings.http(settings))
    readiness = _make_readiness(metrics, http, tunnels, loop_lag, warm_up)
    page.follow(proxy.in_flight, lambda: [reason.value for reason in readiness.reasons()])
    metrics.requests_in_flight.track(lambda: len(proxy.running))
    metrics.replay_memory_bytes.track(lambda: proxy.replay_budget.used_bytes)
    base.opened.callback(http.abort)
    if bound.http is not None:
        await http.start(bound.http)
    base.opened.push_async_callback(http.drain, 0)
    base.tasks.start("HTTP proxy server", http.wait())
    added_ports: tuple[SharedHttpPort, ...] = ()
    observer: TickObserver = http
    if front is not None:
        # Imported with the port, as `OpenAiPort` was.
        from router.process.openai_front import serve_port

        added_ports = (await serve_port(base, front, proxy, is_ready=readiness.ready),)
        observer = TickObservers((http, *(port.server for port in added_ports)))
    if tunnels.listener is not None:
        tunnels.listener.observe_ticks(observer)
    tunnels.dialer.observe_ticks(observer)
    return http, added_ports, readiness


def _make_readiness(
    metrics: Metrics, http: HttpServer, tunnels: TunnelParts, loop_lag: LoopLag, warm_up: WarmUpTimer
) -> Readiness:
    listener, identity = tunnels.listener, tunnels.identity
    causes = {
        NotReady.DRAINING: lambda: http.draining,
        NotReady.EVENT_LOOP_STALLED: loop_lag.stalled,
        NotReady.WARMING_UP: warm_up.warming,
    }
    if identity is not None:
        causes[NotReady.CERTIFICATE_EXPIRED] = identity.expired
    if listener is not None:
        causes[NotReady.TUNNEL_LISTENER_CLOSED] = lambda: not listener.listening
    return Readiness(causes, metrics)
