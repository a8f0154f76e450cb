"""The gRPC listener: accepts connections of workers, gives each call to what answers it, and drains."""

import asyncio
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import structlog

from kubernetes_router.call import Call
from kubernetes_router.grpc_messages import GrpcStatus, field
from kubernetes_router.http2.connection import Http2Connection
from kubernetes_router.http2.stream import Headers, Http2Stream
from kubernetes_router.metrics import Metrics
from kubernetes_router.registration import RegistrationCall
from kubernetes_router.targets import Target, TargetList
from kubernetes_router.watch import WatchCall, WatchPublisher
from router.http1.server import keep_alive
from tunnel_protocol.limit import Limit

_log = structlog.get_logger()

CONNECTIONS = Limit("kubernetes_router.grpc_connections", pieces=2_048)
"""Open connections of workers; a proxy in front may carry the calls of many on one."""
CALLS = Limit("kubernetes_router.calls", pieces=4_096)
"""Open calls of all connections; each holds at most a window of `kubernetes_router.stream_window` in each direction."""

WATCH: Final = b"/stargate.StargateControlPlane/WatchStargates"
REGISTER: Final = b"/stargate.StargateControlPlane/RegisterInferenceServer"
_READ_S: Final = 2.0
"""Seconds that peers have to read the end of their calls, and then the end of their connections."""

SHUTTING_DOWN: Final = "router is shutting down"


class GrpcListener:
    """One listening socket, its connections and their calls."""

    def __init__(
        self, targets: TargetList, publisher: WatchPublisher, metrics: Metrics, *, connect_timeout_s: float
    ) -> None:
        self.targets = targets
        self._publisher = publisher
        self._metrics = metrics
        self._connect_timeout_s = connect_timeout_s
        self._connections: set[Http2Connection] = set()
        self._calls: set[Call] = set()
        self._server: asyncio.Server | None = None
        self._draining = False
        self._changed = asyncio.Event()
        publisher.registered = self._registered
        metrics.grpc_connections.track(lambda: len(self._connections))
        metrics.watches_open.track(lambda: publisher.open)
        metrics.registrations_open.track(lambda: sum(isinstance(call, RegistrationCall) for call in self._calls))

    async def start(self, sock: socket.socket, tls: ssl.SSLContext | None) -> None:
        """Accept connections on a bound socket."""
        keep_alive(sock)
        self._server = await asyncio.get_running_loop().create_server(self._accept, sock=sock, ssl=tls, backlog=1_024)

    async def drain(self) -> None:
        """End every call with UNAVAILABLE, then all connections. Peers that do not read are left behind after a short time."""
        self._draining = True
        if self._server is not None:
            self._server.close()
        for call in list(self._calls):
            call.end(GrpcStatus.UNAVAILABLE, SHUTTING_DOWN)
        await self._until(lambda: not any(connection.streams for connection in self._connections))
        for connection in list(self._connections):
            connection.go_away()
        await self._until(lambda: not self._connections)
        for connection in list(self._connections):
            connection.abort()
        await self._until(lambda: not self._connections)

    async def _until(self, condition: Callable[[], bool]) -> None:
        """Wait until `condition` holds, or peers have had their time."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_READ_S):
                while not condition():
                    self._changed.clear()
                    await self._changed.wait()

    def abort(self) -> None:
        """Close everything at once."""
        if self._server is not None:
            self._server.close()
        for call in list(self._calls):
            call.finish()
        for connection in list(self._connections):
            connection.abort()

    # --- connections -----------------------------------------------------------------------------------------------

    def _accept(self) -> Http2Connection:
        return Http2Connection(
            on_request=self._on_request,
            on_opened=self._on_opened,
            on_closed=self._on_closed,
            on_idle=self._on_idle,
        )

    def _on_opened(self, connection: Http2Connection) -> bool:
        if self._draining or len(self._connections) >= (CONNECTIONS.pieces or 0):
            return False
        self._connections.add(connection)
        return True

    def _on_closed(self, connection: Http2Connection) -> None:
        self._connections.discard(connection)
        self._changed.set()

    def _on_idle(self, _connection: Http2Connection) -> None:
        self._changed.set()

    # --- calls -----------------------------------------------------------------------------------------------------

    def _on_request(self, stream: Http2Stream, headers: Headers) -> None:
        path = field(headers, b":path")
        if not (field(headers, b"content-type") or b"").startswith(b"application/grpc"):
            stream.send_headers([(b":status", b"415")], end=True)
        elif self._draining:
            self._refuse(stream, GrpcStatus.UNAVAILABLE, SHUTTING_DOWN)
        elif len(self._calls) >= (CALLS.pieces or 0):
            self._refuse(stream, GrpcStatus.RESOURCE_EXHAUSTED, "too many calls")
        elif path == WATCH:
            watch = WatchCall(stream, self._on_over)
            self._calls.add(watch)
            self._publisher.add(watch)
        elif path == REGISTER:
            registration = RegistrationCall(
                stream, self._on_over, self._metrics, connect_timeout_s=self._connect_timeout_s
            )
            self._calls.add(registration)
            registration.start(headers, self.targets, _connect)
        else:
            self._refuse(stream, GrpcStatus.UNIMPLEMENTED, "this program serves workers: watch and register")

    def _refuse(self, stream: Http2Stream, status: GrpcStatus, message: str) -> None:
        Call(stream, lambda _call: None).end(status, message)

    def _on_over(self, call: Call) -> None:
        self._calls.discard(call)
        if isinstance(call, WatchCall):
            self._publisher.remove(call)
        else:
            self._publisher.registration_over()

    def _registered(self, pod_name: str) -> bool:
        return any(isinstance(call, RegistrationCall) and call.pod_name == pod_name for call in self._calls)


async def _connect(target: Target) -> Http2Connection:
    """A connection to the control plane of a router. Raises `OSError`."""
    _, connection = await asyncio.get_running_loop().create_connection(
        lambda: Http2Connection(client=True), target.ip, target.grpc_port
    )
    return connection
