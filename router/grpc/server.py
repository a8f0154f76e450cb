"""One gRPC listener: exclusive or shared port, health service, optional TLS, drain.

Source: docs/control-plane.md, "Listeners".
"""

import asyncio
import socket
import ssl
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, cast

import structlog

from router.grpc.call import Call
from router.grpc.frames import Flood
from router.grpc.header_blocks import RequestHead
from router.grpc.health import NAME as HEALTH
from router.grpc.health import Health
from router.grpc.server_connection import ServerConnection
from router.grpc.status import CallError, Status

_log = structlog.get_logger()

Handler = Callable[[Call], Awaitable[None]]
"""Answers a call: returning means OK. May raise `CallError`; is cancelled when the caller is gone."""

_BACKLOG: Final = 1_024
_CHECK_S: Final = 1.0
_TLS_HANDSHAKE_S: Final = 10.0


class GrpcBindError(Exception):
    """The address of a gRPC listener cannot be bound."""

    def __init__(self, address: str, reason: OSError) -> None:
        super().__init__(f"cannot listen on {address}")
        self.address = address
        self.reason = reason


@dataclass(frozen=True, slots=True, kw_only=True)
class GrpcTls:
    """A TLS server identity as PEM."""

    cert_pem: bytes
    key_pem: bytes


class GrpcServer:
    """One server. Call `bind`, `add_service`, `start` and `stop` in this order, each of the others once."""

    def __init__(
        self,
        *,
        tls: GrpcTls | None = None,
        shared: bool = False,
        on_flood: Callable[[Flood], None] = lambda _limit: None,
    ) -> None:
        """`tls`: None = cleartext HTTP/2. `shared`: other processes may bind the same port, and share its connections.

        `on_flood` is called when a connection is closed because its peer exceeded a limit.
        """
        self._on_flood = on_flood
        self._tls = tls
        self._context: ssl.SSLContext | None = None
        self._shared = shared
        self._health = Health()
        self._handlers: dict[str, Handler] = {
            f"/{HEALTH}/Check": self._health.check,
            f"/{HEALTH}/Watch": self._health.watch,
        }
        self._loop = asyncio.get_running_loop()
        self._sock: socket.socket | None = None
        self._server: asyncio.Server | None = None
        self._checks: asyncio.TimerHandle | None = None
        self._connections: set[ServerConnection] = set()
        self._calls: set[Call] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._ended = asyncio.Event()
        self._stopping = False
        self.port = 0

    def bind(self, address: str) -> int:
        """Bind `address` (`host:port`, port 0 = any) and return the port. Raises `GrpcBindError`."""
        host, _, port = address.rpartition(":")
        host = host.strip("[]")
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            # Accepted sockets inherit it: an answer does not wait for the acknowledgement of what was sent before.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._shared:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if ":" in host:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(host != "::"))
            sock.setblocking(False)
            sock.bind((host, int(port)))
            sock.listen(_BACKLOG)  # without it the port could be bound twice
        except OSError as error:
            sock.close()
            raise GrpcBindError(address, error) from error
        self._sock = sock
        self.port = sock.getsockname()[1]
        return self.port

    def add_service(self, name: str, methods: Mapping[str, Handler]) -> None:
        """Serve `methods`, handlers by name, of the service with the full name `name`."""
        for method, handler in methods.items():
            self._handlers[f"/{name}/{method}"] = handler
        self._health.serve(name)

    def replace_tls(self, tls: GrpcTls) -> None:
        """Use another identity for handshakes from now on; only for a server created with `tls`. Raises `ssl.SSLError`."""
        self._context = self._tls_context(tls)

    async def start(self) -> None:
        """Start to serve. Raises `ssl.SSLError` if the identity cannot be used."""
        if self._sock is None:
            raise RuntimeError("the server was not bound, or is stopped")
        context = None
        if self._tls is not None:
            context = self._context = self._tls_context(self._tls)
            context.sni_callback = self._choose_context
        self._server = await self._loop.create_server(
            self._connection,
            sock=self._sock,
            backlog=_BACKLOG,
            ssl=context,
            ssl_handshake_timeout=None if context is None else _TLS_HANDSHAKE_S,
        )
        self._check_connections()

    async def wait(self) -> None:
        """Return when the server has stopped, for any reason."""
        await self._ended.wait()

    async def stop(self, grace_s: float) -> bool:
        """Refuse new calls, and cancel the running ones after `grace_s` seconds. True if all ended before that."""
        self._health.stop()
        self._stopping = True
        self._close_listener()
        for connection in list(self._connections):
            connection.go_away()
        running = set(self._tasks)
        if running:
            # No new calls begin meanwhile: every connection is told to go away.
            _, running = await asyncio.wait(running, timeout=grace_s)
        for call in list(self._calls):
            call.fail(Status.UNAVAILABLE, "the server is stopping")
        if self._tasks:
            await asyncio.wait(list(self._tasks))
        if self._checks is not None:
            self._checks.cancel()
        self._ended.set()
        return not running

    async def close(self) -> None:
        """Stop at once and release the port; also if the server was not started, or has stopped."""
        await self.stop(0)
        for connection in list(self._connections):
            connection.abort()

    # --- Calls of `ServerConnection` -------------------------------------------------------------------------------

    def opened(self, connection: ServerConnection) -> None:
        """A connection was accepted."""
        self._connections.add(connection)
        if self._stopping:
            connection.go_away()

    def closed(self, connection: ServerConnection) -> None:
        """A connection is closed."""
        self._connections.discard(connection)

    def begin(self, call: Call, head: RequestHead) -> None:
        """Run the handler of a call."""
        handler = self._handlers.get(head.path)
        if handler is None:
            call.end(Status.UNIMPLEMENTED, f"unknown method {head.path}")
            return
        self._calls.add(call)
        task = self._loop.create_task(self._run(call, handler))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        call.begin(task, head.timeout_s)

    def over(self, call: Call) -> None:
        """A call was ended, or its peer is gone."""
        self._calls.discard(call)

    def flooded(self, limit: Flood) -> None:
        """A connection is closed because its peer exceeded `limit`."""
        self._on_flood(limit)

    # ---------------------------------------------------------------------------------------------------------------

    async def _run(self, call: Call, handler: Handler) -> None:
        try:
            await handler(call)
        except CallError as refusal:
            call.end(refusal.status, refusal.text)
        except Exception as error:  # noqa: BLE001 - whatever it is, the call ends and the server goes on
            _log.exception("a gRPC call failed", peer=call.peer)
            call.end(Status.UNKNOWN, f"Unexpected {type(error).__name__}")
        else:
            call.end(Status.OK)

    def _connection(self) -> ServerConnection:
        return ServerConnection(self)

    def _check_connections(self) -> None:
        self._checks = self._loop.call_later(_CHECK_S, self._check_connections)
        now = self._loop.time()
        for connection in list(self._connections):
            connection.check(now)

    def _close_listener(self) -> None:
        server, self._server = self._server, None
        sock, self._sock = self._sock, None
        if server is not None:
            server.close()
        elif sock is not None:
            sock.close()

    def _choose_context(self, handshake: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        handshake.context = cast("ssl.SSLContext", self._context)

    def _tls_context(self, tls: GrpcTls) -> ssl.SSLContext:
        """TLS 1.2 or newer, HTTP/2."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["h2"])
        # The library reads files only. These hold the bytes that were checked; the folder is open to this user alone.
        with tempfile.TemporaryDirectory() as folder:
            cert, key = Path(folder, "cert"), Path(folder, "key")
            for path, content in ((cert, tls.cert_pem), (key, tls.key_pem)):
                path.write_bytes(content)
            context.load_cert_chain(cert, key)
        return context
