"""The TCP ports that several processes of a router share: HTTP, model discovery and that for OpenAI clients.

They are open only as the supervisor says.

The kernel gives a new connection to any process that listens. So a process that should get none closes its listeners; the
supervisor keeps the ports reserved meanwhile. See docs/operations.md, "Several processes".
"""

import asyncio
import ssl
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from router.config.option_values import SocketAddress
from router.config.startup_checks import StartupError
from router.grpc.frames import Flood
from router.grpc.server import GrpcBindError, GrpcServer, GrpcTls, Handler
from router.http1.server import HttpServer
from router.process.sockets import bind_tcp, cause_of

_GRACE_S = 2.0
"""Seconds that running calls of the model-discovery port may take after its listener has closed."""


class SharedGrpcServer:
    """A gRPC listener on a shared port that can be closed and opened again; used like a `GrpcServer` otherwise."""

    def __init__(
        self,
        address: SocketAddress,
        listener: str,
        options: Sequence[str],
        tls: GrpcTls | None,
        on_flood: Callable[[Flood], None] = lambda _limit: None,
    ) -> None:
        """`listener` and `options` are named if the port cannot be opened; `on_flood` as of `GrpcServer`."""
        self._on_flood = on_flood
        self._address = address
        self._listener = listener
        self._options = options
        self._tls = tls
        self._services: list[tuple[str, Mapping[str, Handler]]] = []
        self._server: GrpcServer | None = None
        self._ended = asyncio.Event()

    def add_service(self, name: str, methods: Mapping[str, Handler]) -> None:
        """As `GrpcServer.add_service`, whenever the port is open."""
        self._services.append((name, methods))

    def replace_tls(self, tls: GrpcTls) -> None:
        """As `GrpcServer.replace_tls`."""
        self._tls = tls
        if self._server is not None:
            self._server.replace_tls(tls)

    async def start(self) -> None:
        """Nothing: `listen` opens the port."""

    async def listen(self) -> None:
        """Open the port. Raises `StartupError`."""
        server = GrpcServer(tls=self._tls, shared=True, on_flood=self._on_flood)
        try:
            server.bind(str(self._address))
        except GrpcBindError as error:
            cause = cause_of(error.reason)
            raise StartupError(f"failed to bind {self._listener} listener", cause, options=self._options) from None
        for service in self._services:
            server.add_service(*service)
        self._server = server
        await server.start()

    async def stop_listening(self) -> None:
        """Close the port; running calls end within `_GRACE_S` seconds."""
        server, self._server = self._server, None
        if server is not None:
            await server.stop(_GRACE_S)

    async def wait(self) -> None:
        """Return after `stop` or `close`."""
        await self._ended.wait()

    async def stop(self, grace_s: float) -> bool:
        """As `GrpcServer.stop`."""
        self._ended.set()
        return self._server is None or await self._server.stop(grace_s)

    async def close(self) -> None:
        """As `GrpcServer.close`."""
        await self.stop(0)


@dataclass(frozen=True, slots=True)
class SharedHttpPort:
    """A further HTTP port that several processes share."""

    server: HttpServer
    address: SocketAddress
    listener: str
    """Its name in messages."""
    options: Sequence[str]
    tls: ssl.SSLContext | None


class SharedPorts:
    """Opens and closes the ports as asked; the newest wish counts."""

    def __init__(
        self,
        http: HttpServer,
        http_address: SocketAddress,
        http_options: Sequence[str],
        models: SharedGrpcServer,
        on_changed: Callable[[], None],
        added_ports: Sequence[SharedHttpPort] = (),
    ) -> None:
        """`on_changed` is called after `listening` has changed."""
        self._added_ports = added_ports
        self._http = http
        self._http_address = http_address
        self._http_options = http_options
        self._models = models
        self._on_changed = on_changed
        self._wanted = False
        self._asked = asyncio.Event()
        self.listening = False
        """Whether the ports are open."""

    def ask(self, wanted: bool) -> None:
        """Have the ports open or closed soon. A draining process opens none."""
        self._wanted = wanted
        self._asked.set()

    async def run(self) -> None:
        """Do what was asked until cancelled. Raises `StartupError` if a port cannot be opened."""
        while True:
            await self._asked.wait()
            self._asked.clear()
            wanted = self._wanted and not self._http.draining
            if wanted == self.listening:
                continue
            if wanted:
                await self._models.listen()
                await self._http.start(bind_tcp(self._http_address, "HTTP", self._http_options, shared=True))
                for port in self._added_ports:
                    await port.server.start(bind_tcp(port.address, port.listener, port.options, shared=True), port.tls)
            else:
                for port in self._added_ports:
                    await port.server.stop_listening()
                await self._http.stop_listening()
                await self._models.stop_listening()
            self.listening = wanted
            self._on_changed()
