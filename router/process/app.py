"""The start of a router: creates the parts of the packages, connects them, and returns a serving `Router`.

The order is that of docs/operations.md, "Start and end"; the checks are in `router/config/startup_checks.py`. Every part
that is opened pushes its closing onto one `AsyncExitStack`: a start that fails or is cancelled unwinds it, as a drain does.
"""

import time
from contextlib import AsyncExitStack

import structlog

from router.config import package_settings
from router.config.settings import Settings
from router.config.startup_checks import (
    StartupError,
    addresses_without_scheme,
    check_options,
    check_worker_auth,
    outbound_trust,
    read_trust_bundle,
)
from router.control_plane.worker_auth import OpenAuthenticator
from router.openai.model_names import KnownTargets
from router.process import assembly
from router.process.critical_tasks import CriticalTasks
from router.process.opening import (
    Base,
    TunnelParts,
    bind_reverse,
    bind_tcp_ports,
    connect_worker_auth,
    open_dialer,
    port_of,
)
from router.process.policy import Policy
from router.process.reloads import Reloads
from router.process.router import Router
from router.process.served_identity import ServedIdentity
from router.process.serving import serve
from router.process.supervision import SupervisorLink
from router.process.tracing import FLUSH_S, open_tracer
from router.registry import Registry, TargetKey
from router.telemetry import build
from router.telemetry.families import MetricNameError
from router.telemetry.logging import writer_in_use
from router.telemetry.metrics import Metrics
from tunnel_protocol.observers.line_writer import LineWriter

_log = structlog.get_logger()


async def start(settings: Settings, reloads: Reloads, supervisor: SupervisorLink | None = None) -> Router:
    """Check, bind, connect and serve; returns when every port answers. Raises `StartupError`, with everything closed.

    With a `supervisor` the HTTP and model-discovery ports are opened when it says so.
    """
    async with AsyncExitStack() as opened:
        tasks = CriticalTasks()
        opened.push_async_callback(tasks.close)
        try:
            return await _start(settings, reloads, supervisor, tasks, opened)
        except BaseException:
            tasks.begin_stopping()
            raise


async def _start(
    settings: Settings,
    reloads: Reloads,
    supervisor: SupervisorLink | None,
    tasks: CriticalTasks,
    opened: AsyncExitStack,
) -> Router:
    check_options(settings)
    _warn_about_options(settings)
    metrics = _make_metrics(settings)
    tracer = open_tracer(settings, metrics)
    if tracer is not None:
        opened.push_async_callback(tracer.close, FLUSH_S)
    key_log = _open_key_log(settings, metrics, reloads, opened)
    assembly.check_qlog_dir(settings)
    identity, certificates = _read_tls(settings, metrics)
    quic = package_settings.quic(settings, key_log)
    tunnel_limits = package_settings.tunnels(settings)
    known = KnownTargets(time.monotonic)

    def on_active_count(key: TargetKey, count: int) -> None:
        metrics.set_active_inference_servers(key.routing_key, key.model, count)
        known.note(key, count)

    registry = Registry(on_active_count, package_settings.registry(settings))
    base = Base(
        settings=settings,
        metrics=metrics,
        registry=registry,
        reloads=reloads,
        tasks=tasks,
        opened=opened,
        tracer=tracer,
        supervisor=supervisor,
    )
    authenticator = assembly.authenticator(settings, metrics)
    if not isinstance(authenticator, OpenAuthenticator):
        opened.push_async_callback(authenticator.close)
        reloads.poll("worker-auth credential", authenticator.renew_credential)
    listener, reverse_address = await bind_reverse(base, identity, authenticator, quic, tunnel_limits)
    check_worker_auth(settings)
    bound = bind_tcp_ports(base, reverse_address)
    front = None
    if settings.openai_listen_addr is not None:
        from router.process.openai_front import open_port

        front = open_port(base, known)
        bound.addresses["openai"] = front.address
    lookup = assembly.lookup(settings, bound.advertise, port_of(bound.addresses["http"]))
    await connect_worker_auth(settings, authenticator)
    trust = outbound_trust(settings, certificates)
    dialer = await open_dialer(base, trust, quic, tunnel_limits, reverse_address)
    tunnels = TunnelParts(settings=tunnel_limits, metrics=metrics, listener=listener, identity=identity, dialer=dialer)
    policy = Policy.load(settings, metrics)
    return await serve(base, bound, tunnels, policy, authenticator, lookup, front)


def _warn_about_options(settings: Settings) -> None:
    floor, cap = settings.registration_update_idle_timeout_ms, settings.registration_update_max_idle_timeout_ms
    if 0 < cap < floor:
        _log.warning(
            "registration update max idle timeout is below the idle-timeout floor; max cap wins",
            registration_update_idle_timeout_ms=floor,
            registration_update_max_idle_timeout_ms=cap,
        )
    if settings.ignored_options:
        _log.warning(
            "options without effect in this version are accepted and ignored",
            options=", ".join(settings.ignored_options),
        )
    bare = addresses_without_scheme(settings)
    if bare:
        _log.warning(
            "addresses for workers have no http:// or https://; they are published as they are, and --compat 0.18 refuses them",
            addresses=", ".join(bare),
        )
    if settings.quic_insecure and not settings.reverse:
        _log.warning("workers are dialled without verification of their certificates (--quic-insecure)")


def _make_metrics(settings: Settings) -> Metrics:
    try:
        metrics = Metrics(settings.metrics_prefix, as_of_0_18=settings.as_of_0_18)
    except MetricNameError as error:
        options = settings.shown("metrics_prefix")
        raise StartupError("failed to create prometheus metrics registry", str(error), options=options) from None
    metrics.build_info.set(1, (build.build_version(), build.commit()))
    metrics.draining.set(0)
    return metrics


def _open_key_log(settings: Settings, metrics: Metrics, reloads: Reloads, opened: AsyncExitStack) -> LineWriter | None:
    key_log = assembly.key_log(settings)
    dropped = metrics.log_lines_dropped_total
    log = writer_in_use()
    if log is not None:
        dropped.track(lambda: log.dropped, ("log",))
    if key_log is not None:
        opened.callback(key_log.close)
        dropped.track(lambda: key_log.dropped, ("key_log",))
        reloads.reopen(key_log.reopen)
    return key_log


def _read_tls(settings: Settings, metrics: Metrics) -> tuple[ServedIdentity | None, bytes | None]:
    """The TLS identity for workers (reverse mode only), and the PEM that outgoing connections would trust."""
    if settings.reverse:
        identity = ServedIdentity.load(settings, metrics)
        return identity, identity.identity.cert_pem if identity.mounted else None
    path = settings.tls_cert_path
    return None, None if path is None else read_trust_bundle(path, settings.shown("tls_cert_path"))
