"""Opens the port for OpenAI clients, and connects what answers there with routing, keys, limits and usage.

Imported only with the port: what answers there takes 6 MiB.
"""

import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import structlog

from certs import Identity as TlsIdentity
from router.config import package_settings
from router.config.option_values import SocketAddress
from router.config.startup_checks import listen_address
from router.http1.server import HttpServer, ServerCallbacks
from router.openai.errors import envelope
from router.openai.front import Front
from router.openai.front_context import FrontContext
from router.openai.gateway_front import GatewayFront
from router.openai.gateway_texts import message_body
from router.openai.model_names import KnownTargets
from router.openai.ports import FrontServices
from router.process.http_tls import HttpTls
from router.process.openai_services import open_services
from router.process.opening import Base
from router.process.polling import every
from router.process.served_identity import ServedIdentity
from router.process.shared_ports import SharedHttpPort
from router.process.sockets import bind_tcp, bound_address
from router.proxy.proxy import Proxy
from router.telemetry import build

_log = structlog.get_logger()

LISTENER = "OpenAI"
"""Name of the port in messages."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenAiPort:
    """The port, bound and not served yet."""

    sock: socket.socket | None
    """None with a supervisor, which says when the port is opened."""
    address: SocketAddress
    identity: ServedIdentity | None
    """None without TLS."""
    services: FrontServices
    known: KnownTargets


def open_port(base: Base, known: KnownTargets) -> OpenAiPort:
    """Check the options of the port, bind it and open its services. Raises `StartupError`."""
    settings = base.settings
    address = listen_address(settings, "openai_listen_addr")
    options = settings.shown("openai_listen_addr")
    identity = ServedIdentity.load_openai(settings, base.metrics)
    services = open_services(base, address, tls=identity is not None, as_gateway=settings.openai_mode == "gateway")
    sock = None
    if base.supervisor is None:
        sock = base.opened.enter_context(bind_tcp(address, LISTENER, options))
        address = bound_address(sock)
    return OpenAiPort(sock=sock, address=address, identity=identity, services=services, known=known)


async def serve_port(base: Base, port: OpenAiPort, proxy: Proxy, *, is_ready: Callable[[], bool]) -> SharedHttpPort:
    """Serve the port, unless a supervisor says when; its end is pushed onto `base.opened`."""
    settings = base.settings
    as_gateway = settings.openai_mode == "gateway"
    context = FrontContext(
        package_settings.openai_front(settings),
        port.services,
        proxy,
        base.registry,
        port.known,
        time.monotonic,
        message_body if as_gateway else envelope,
    )
    front: ServerCallbacks
    if as_gateway:
        front = GatewayFront(context, base.metrics, version=build.build_version(), commit=build.commit())
    else:
        front = Front(context, base.metrics, is_ready=is_ready)
    http = HttpServer(front, time.monotonic, package_settings.http(settings))
    tls = None
    if port.identity is not None:
        tls = HttpTls(port.identity.identity)
        poll = partial(port.identity.poll, _replacing(tls))
        name = "OpenAI TLS reload"
        base.reloads.poll(name, poll)
        base.tasks.start_loop(name, every(settings.tls_poll_ms / 1000, poll, name, base.metrics))
    base.opened.callback(http.abort)
    context_of_tls = None if tls is None else tls.context
    if port.sock is not None:
        await http.start(port.sock, context_of_tls)
    base.opened.push_async_callback(http.drain, 0)
    base.tasks.start("OpenAI server", http.wait())
    _log.info("serving OpenAI clients", addr=str(port.address), tls=tls is not None, keys=not settings.openai_open)
    return SharedHttpPort(http, port.address, LISTENER, settings.shown("openai_listen_addr"), context_of_tls)


def _replacing(tls: HttpTls) -> Callable[[TlsIdentity], None]:
    def serve_to_clients(new: TlsIdentity) -> None:
        tls.replace(new)

    return serve_to_clients
