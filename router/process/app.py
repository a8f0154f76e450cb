"""Assembly and lifecycle: builds the packages' parts, introduces them to each other, supervises and drains them.

Start and end follow docs/operations.md, "Start and end"; the checks and their order are in `startup_checks.py`.
"""

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import structlog

from certs import Identity as TlsIdentity
from router.config.option_values import SocketAddress
from router.config.settings import Settings
from router.config.startup_checks import (
    StartupError,
    causes_of,
    check_options,
    check_worker_auth,
    listen_address,
    outbound_trust,
    read_trust_bundle,
)
from router.control_plane.discovery import Discovery
from router.control_plane.grpc_server import GrpcBindError, GrpcServer, GrpcTls
from router.control_plane.model_discovery import ModelDiscovery
from router.control_plane.service import ControlPlane
from router.control_plane.watch import WatchCell, WatchPublisher, remote_watch_urls
from router.control_plane.worker_auth import GatewayAuthenticator, WorkerAuthConnectError
from router.http1.server import HttpServer
from router.operators.explain_page import ExplainPage
from router.operators.server import OperatorsServer
from router.ports.registration_tunnels import WorkerTunnels
from router.process import assembly, build
from router.process.critical_tasks import CriticalTasks
from router.process.freed_memory import FreedMemory, find_trim
from router.process.policy import Policy
from router.process.polling import every
from router.process.ports_file import write_ports_file
from router.process.readiness import NotReady, Readiness
from router.process.served_identity import ServedIdentity
from router.process.sockets import bind_tcp, bind_tcp_everywhere, bound_address
from router.proxy.proxy import Proxy
from router.proxy.routes import Routes
from router.registry import Identity, Registry, TargetKey
from router.telemetry.families import MetricNameError
from router.telemetry.logging import writer_in_use
from router.telemetry.loop_lag import LoopLag
from router.telemetry.metrics import Metrics
from router.tunnels.dialer import SERVER_NAME, DirectDialer
from router.tunnels.direct_tunnels import DirectTunnels
from router.tunnels.listener import ReverseListener
from router.tunnels.reverse_tunnels import ReverseTunnels
from tunnel_protocol.control import stargate_pb2_grpc
from tunnel_protocol.observers.line_writer import LineWriter
from tunnel_protocol.quic.tls import ClientTls, ServerTls
from tunnel_protocol.raw_quic import RAW_QUIC

_log = structlog.get_logger()

_LAST_STEP_S = 2.0
"""What the last steps of a drain may take beyond the time of running requests; they wait for nothing but the event loop."""

_PUBLISHER = "WatchStargates publisher"
_TLS_RELOAD = "reverse tunnel TLS reload"
_GRPC_TLS_RELOAD = "gRPC TLS reload"
_LB_RELOAD = "load balancer config reload"


class App:
    """One router process. `start` raises `StartupError`; after it `tasks.failed` tells if a critical part ends."""

    def __init__(self, settings: Settings) -> None:
        """Nothing is opened yet."""
        self.settings = settings
        self.tasks = CriticalTasks()
        self.bound: dict[str, SocketAddress | None] = {}
        self._closers: list[Callable[[], Awaitable[None]]] = []
        self._grpc: dict[str, GrpcServer] = {}
        self._listener: ReverseListener | None = None
        self._dialer: DirectDialer | None = None
        self._key_log: LineWriter | None = None
        self._polls: dict[str, Callable[[], Awaitable[None]]] = {}
        """What SIGHUP looks at, by name."""
        self._reloading: asyncio.Task[None] | None = None

    @staticmethod
    def build() -> dict[str, str]:
        """Version and commit, for the first line of the log."""
        return {"version": build.VERSION, "commit_short_sha": build.commit()}

    # --- start -------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Check, bind, connect, serve: returns when everything answers. Raises `StartupError`."""
        settings = self.settings
        check_options(settings)
        self._warn_about_options()
        self.metrics = self._make_metrics()
        self._open_key_log()
        trust = self._read_tls()
        self._tunnel_settings = assembly.tunnel_settings(settings)
        self.registry = Registry(self._on_active_count)
        self._authenticator = assembly.authenticator(settings, self.metrics)
        if isinstance(self._authenticator, GatewayAuthenticator):
            self._closers.append(self._authenticator.close)
            self._polls["worker-auth credential"] = self._authenticator.renew_credential
        await self._bind_reverse()
        check_worker_auth(settings)
        http_socket, metrics_socket = self._bind_tcp()
        lookup = assembly.lookup(settings, self._advertise, self._port("http"))
        await self._connect_worker_auth()
        await self._open_dialer(outbound_trust(settings, trust))
        self._policy = Policy.load(settings, self.metrics)
        discovery = Discovery(lookup, self.metrics, grace_s=settings.discovery_grace_ms / 1000)
        await self._serve(discovery, http_socket, metrics_socket)
        if settings.ports_file is not None:
            write_ports_file(Path(settings.ports_file), self.bound)

    def _warn_about_options(self) -> None:
        settings = self.settings
        floor, cap = settings.registration_update_idle_timeout_ms, settings.registration_update_max_idle_timeout_ms
        if 0 < cap < floor:
            _log.warning(
                "registration update max idle timeout is below the idle-timeout floor; max cap wins",
                registration_update_idle_timeout_ms=floor,
                registration_update_max_idle_timeout_ms=cap,
            )
        if settings.quic_insecure and not settings.reverse:
            _log.warning("workers are dialled without verification of their certificates (--quic-insecure)")

    def _make_metrics(self) -> Metrics:
        try:
            metrics = Metrics(self.settings.metrics_prefix)
        except MetricNameError as error:
            raise StartupError("failed to create prometheus metrics registry", str(error)) from None
        metrics.build_info.set(1, tuple(self.build().values()))
        metrics.draining.set(0)
        return metrics

    def _open_key_log(self) -> None:
        key_log = self._key_log = assembly.key_log(self.settings)
        dropped = self.metrics.log_lines_dropped_total
        log = writer_in_use()
        if log is not None:
            dropped.track(lambda: log.dropped, ("log",))
        if key_log is not None:
            dropped.track(lambda: key_log.dropped, ("key_log",))

            async def close() -> None:
                key_log.close()

            self._closers.append(close)

    def reopen_logs(self) -> None:
        """Open the key log again, at its path: the file was rotated away. A failure keeps the old one, and is logged."""
        if self._key_log is not None:
            self._key_log.reopen()

    def _on_active_count(self, key: TargetKey, count: int) -> None:
        self.metrics.set_active_inference_servers(key.routing_key, key.model, count)

    def _read_tls(self) -> bytes | None:
        """What outgoing connections would trust; in reverse mode also loads what is served."""
        settings = self.settings
        self._identity: ServedIdentity | None = None
        if settings.reverse:
            self._identity = ServedIdentity.load(settings, self.metrics)
            return self._identity.identity.cert_pem if self._identity.mounted else None
        return None if settings.tls_cert_path is None else read_trust_bundle(settings.tls_cert_path)

    async def _bind_reverse(self) -> None:
        settings = self.settings
        self.bound["reverse_tunnel"] = None
        if self._identity is None or settings.reverse_tunnel_listen_addr is None:
            return
        address = listen_address(settings.reverse_tunnel_listen_addr)
        self._listener = ReverseListener(
            self.registry, self._authenticator, RAW_QUIC, self._tunnel_settings, self.metrics
        )
        try:
            host, port = await self._listener.listen(
                address.host,
                address.port,
                _server_tls(self._identity.identity),
                assembly.quic_settings(settings, self._key_log),
            )
        except OSError as error:
            raise StartupError("failed to bind reverse tunnel listener", *causes_of(error)) from None
        self._closers.append(self._listener.close)
        self.bound["reverse_tunnel"] = SocketAddress(host, port)
        self._identity.log_coverage(settings, port)

    def _bind_tcp(self) -> tuple[socket.socket, socket.socket]:
        """Control plane, model discovery, HTTP, metrics, in this order; all addresses are parsed first."""
        settings = self.settings
        grpc, models, http = (
            listen_address(text)
            for text in (settings.listen_addr, settings.model_discovery_listen_addr, settings.http_listen_addr)
        )
        self._grpc_identity = ServedIdentity.load_grpc(settings, self.metrics)
        tls = None
        if self._grpc_identity is not None:
            pair = self._grpc_identity.identity
            tls = GrpcTls(cert_pem=pair.cert_pem, key_pem=pair.key_pem)
        self._bind_grpc("grpc", grpc, "gRPC", GrpcServer(tls=tls))
        self._bind_grpc("model_discovery", models, "model-discovery", GrpcServer(tls=tls))
        http_socket = bind_tcp(http, "HTTP")
        metrics_socket = bind_tcp_everywhere(settings.metrics_port, "metrics")
        self.bound["http"], self.bound["metrics"] = bound_address(http_socket), bound_address(metrics_socket)
        self._advertise = assembly.advertised(settings, grpc, self._port("grpc"))
        return http_socket, metrics_socket

    def _bind_grpc(self, name: str, address: SocketAddress, listener: str, server: GrpcServer) -> None:
        try:
            port = server.bind(str(address))
        except GrpcBindError as error:
            raise StartupError(f"failed to bind {listener} listener", *causes_of(error)) from None
        self._grpc[name] = server
        self.bound[name] = SocketAddress(address.host, port)

    def _port(self, name: str) -> int:
        address = self.bound[name]
        return 0 if address is None else address.port

    async def _connect_worker_auth(self) -> None:
        if not isinstance(self._authenticator, GatewayAuthenticator):
            return
        try:
            await self._authenticator.connect(self.settings.worker_auth_connect_timeout_ms / 1000)
        except WorkerAuthConnectError as error:
            raise StartupError(str(error), f"no answer from {self.settings.worker_auth_endpoint}") from None

    async def _open_dialer(self, trust: bytes | None) -> None:
        # In reverse mode too: a worker may register to be dialled whatever the mode of the router.
        settings = self.settings
        tls = ClientTls(trust_pem=trust, server_name=SERVER_NAME, insecure=settings.quic_insecure)
        quic = assembly.quic_settings(settings, self._key_log)
        try:
            self._dialer = await DirectDialer.open(tls, RAW_QUIC, quic, self._tunnel_settings, self.metrics)
        except OSError as error:
            raise StartupError("failed to initialize quic proxy", *causes_of(error)) from None
        if self._listener is None:
            self._dialer.log_buffers()  # else the listener's socket has said the same
        self._dialer.own_ports.add(self._port("reverse_tunnel"))
        self._closers.append(self._dialer.close)

    def _make_tunnels(self, identity: Identity) -> WorkerTunnels:
        if self._dialer is None or identity.reverse:
            return ReverseTunnels(identity, self._tunnel_settings, self.metrics)
        return DirectTunnels(identity, self._tunnel_settings, self.metrics, self._dialer.dial)

    # --- serve -------------------------------------------------------------------------------------------------------

    async def _serve(self, discovery: Discovery, http_socket: socket.socket, metrics_socket: socket.socket) -> None:
        settings = self.settings
        watch = WatchCell()
        self._make_services(watch)
        publisher = WatchPublisher(
            discovery,
            watch,
            poll_ms=settings.dns_poll_ms,
            heartbeat_ms=settings.watch_heartbeat_ms,
            remote_urls=remote_watch_urls(
                settings.remote_stargate_url,
                advertise_addr=str(self._advertise),
                dns_name=settings.stargate_discovery_dns_name,
            ),
            pylon_dial_addr=settings.grpc_pylon_dial_addr,
        )
        self.operators = OperatorsServer(
            self.metrics,
            all_families=settings.metrics_families == "all",
            mounts=[ExplainPage(self.registry, self._policy.selector).route()],
        )
        self._track_gauges()
        if self._identity is not None and self._identity.mounted:
            self._start_polling(_TLS_RELOAD, settings.tls_poll_ms, self._look_at_tls)
        if self._grpc_identity is not None:
            self._start_polling(_GRPC_TLS_RELOAD, settings.tls_poll_ms, self._look_at_grpc_tls)
        if self._policy.watched:
            self._start_polling(_LB_RELOAD, settings.lb_config_poll_ms, self._policy.poll)
        self.tasks.start(_PUBLISHER, publisher.run())
        self.tasks.start("metrics server", self.operators.serve(metrics_socket))
        await self.operators.wait_started()
        _log.info("metrics server listening", addr=str(self.bound["metrics"]))
        for name, task in (("grpc", "control-plane gRPC server"), ("model_discovery", "model-discovery gRPC server")):
            await self._grpc[name].start()
            self.tasks.start(task, self._grpc[name].wait())
        await self._serve_http(http_socket)

    async def _serve_http(self, http_socket: socket.socket) -> None:
        proxy = Proxy(
            self.registry, self._policy.selector, self.metrics, assembly.proxy_settings(self.settings), time.monotonic
        )
        debug_config = assembly.debug_config(self.settings, self.bound, self._advertise)
        readiness = self._watch_readiness()
        routes = Routes(proxy, self.registry, self.metrics, is_ready=readiness.ready, debug_config=lambda: debug_config)
        self.http = HttpServer(
            routes, time.monotonic, assembly.http_times(self.settings), self.settings.http_max_connections
        )
        self._loop_lag.on_measured = readiness.poll
        for tunnels in (self._listener, self._dialer):
            if tunnels is not None:
                tunnels.observe_ticks(self.http)
        self.metrics.requests_in_flight.track(lambda: len(proxy.running))
        self.metrics.replay_memory_bytes.track(lambda: proxy.replay_budget.used_bytes)
        await self.http.start(http_socket)
        self.tasks.start("HTTP proxy server", self.http.wait())

    def _watch_readiness(self) -> Readiness:
        listener, identity = self._listener, self._identity
        causes = {NotReady.DRAINING: lambda: self.http.draining, NotReady.EVENT_LOOP_STALLED: self._loop_lag.stalled}
        if identity is not None:
            causes[NotReady.CERTIFICATE_EXPIRED] = identity.expired
        if listener is not None:
            causes[NotReady.TUNNEL_LISTENER_CLOSED] = lambda: not listener.listening
        return Readiness(causes, self.metrics)

    def _track_gauges(self) -> None:
        """Gauges whose values other parts hold are read at each scrape."""

        def reverse_tunnels_up() -> int:
            return sum(one.identity.reverse and one.tunnels.healthy() for one in self.registry.registrations())

        self.metrics.reverse_tunnels_up.track(reverse_tunnels_up)
        if self._listener is not None:
            listener = self._listener
            self.metrics.quic_connections.track(lambda: listener.connections, ("incoming",))
            self.metrics.quic_handshakes_half_open.track(lambda: listener.half_open[0], ("false",))
            self.metrics.quic_handshakes_half_open.track(lambda: listener.half_open[1], ("true",))
            self.metrics.reverse_handshakes_pending.track(lambda: listener.pending)
        if self._dialer is not None:
            dialer = self._dialer
            self.metrics.quic_connections.track(lambda: dialer.connections, ("outgoing",))
        self._loop_lag = LoopLag(self.metrics.event_loop_lag_seconds)
        self._loop_lag.start()
        self._freed_memory = FreedMemory(find_trim())
        self._freed_memory.start()

    def _make_services(self, watch: WatchCell) -> None:
        settings = self.settings
        self.control_plane = ControlPlane(
            self.registry,
            self._authenticator,
            self._make_tunnels,
            watch,
            assembly.control_plane_settings(settings, self._advertise, self.bound["reverse_tunnel"]),
            self.metrics,
        )
        self._grpc["grpc"].add_service(
            "stargate.StargateControlPlane",
            stargate_pb2_grpc.add_StargateControlPlaneServicer_to_server,
            self.control_plane,
        )
        self._grpc["model_discovery"].add_service(
            "stargate.StargateModelDiscovery",
            stargate_pb2_grpc.add_StargateModelDiscoveryServicer_to_server,
            ModelDiscovery(self.registry),
        )

    # --- reload ------------------------------------------------------------------------------------------------------

    def reload(self) -> None:
        """Look at every watched file now, mint the router's token anew, and open the key log again.

        What cannot be used is logged, and the old one stays. Secrets and token files need no more: they are read for each use.
        """
        _log.info("reload requested")
        self.reopen_logs()
        if self._reloading is None or self._reloading.done():
            self._reloading = asyncio.create_task(self._poll_everything())

    async def _poll_everything(self) -> None:
        for name, poll in self._polls.items():
            try:
                await poll()
            except Exception:  # noqa: BLE001 - logged; one file that cannot be looked at does not keep the others from it
                _log.exception("reload failed", what=name)

    def _start_polling(self, name: str, interval_ms: int, poll: Callable[[], Awaitable[None]]) -> None:
        self._polls[name] = poll
        self.tasks.start(name, every(interval_ms / 1000, poll, name, self.metrics))

    async def _look_at_grpc_tls(self) -> None:
        if self._grpc_identity is not None:
            await self._grpc_identity.poll(self._activate_grpc_tls)

    def _activate_grpc_tls(self, identity: TlsIdentity) -> None:
        for server in self._grpc.values():
            server.replace_tls(GrpcTls(cert_pem=identity.cert_pem, key_pem=identity.key_pem))

    async def _look_at_tls(self) -> None:
        if self._identity is not None:
            await self._identity.poll(self._activate_tls)

    def _activate_tls(self, identity: TlsIdentity) -> None:
        if self._listener is not None:
            self._listener.replace_tls(_server_tls(identity))

    # --- end ---------------------------------------------------------------------------------------------------------

    async def drain(self, budget_s: float) -> bool:
        """Let what runs finish within `budget_s`, then end everything. False: something was still running."""
        self.tasks.begin_stopping()
        self.metrics.draining.set(1)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + budget_s
        if self._listener is not None:
            self._listener.stop_accepting()
        ending = [asyncio.create_task(server.stop(budget_s + _LAST_STEP_S)) for server in self._grpc.values()]
        lame_duck_s = min(self.settings.lame_duck_ms / 1000, budget_s)
        if not lame_duck_s:
            self.operators.stop()
        if not await self.http.drain(budget_s, lame_duck_s):
            return False
        for tunnels in (self._listener, self._dialer):
            if tunnels is not None:
                tunnels.begin_shutdown()
        # Workers drop their tunnels soon after their registration or watch stream ends, so these end last.
        self.control_plane.stop()
        for name in (_PUBLISHER, _TLS_RELOAD, _GRPC_TLS_RELOAD, _LB_RELOAD):
            self.tasks.cancel(name)
        self.operators.stop()
        async with asyncio.timeout_at(deadline + _LAST_STEP_S):
            await asyncio.gather(*ending)
            await self.close()
            await self.tasks.wait()
        return True

    def unfinished(self) -> list[str]:
        """What still runs, for the log of a drain that took too long."""
        return [*self.tasks.unfinished(), f"{self.http.in_flight} requests"]

    async def close(self) -> None:
        """Release what was opened, last first; also after a start that failed half-way."""
        while self._closers:
            await self._closers.pop()()


def _server_tls(identity: TlsIdentity) -> ServerTls:
    return ServerTls(cert_pem=identity.cert_pem, key_pem=identity.key_pem)
