"""One gRPC listener: exclusive or shared port, limits on what peers may send, health service, optional TLS, drain.

Source: docs/control-plane.md, "Listeners".
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tunnel_protocol.control.grpc_options import server_options

_STATUS = health_pb2.HealthCheckResponse


class GrpcBindError(Exception):
    """The address of a gRPC listener cannot be bound."""

    def __init__(self, address: str) -> None:
        super().__init__(f"cannot listen on {address}")
        self.address = address


@dataclass(frozen=True, slots=True, kw_only=True)
class GrpcTls:
    """A TLS server identity as PEM."""

    cert_pem: bytes
    key_pem: bytes


class GrpcServer:
    """One server. Call `bind`, `add_service`, `start` and `stop` in this order, each of the others once."""

    def __init__(self, *, tls: GrpcTls | None = None, shared: bool = False) -> None:
        """`tls`: None = cleartext HTTP/2. `shared`: other processes may bind the same port, and share its connections."""
        self._tls = tls
        self._served_tls = tls
        self._health = Health()
        self._server = grpc.aio.server(options=server_options(shared=shared))
        self._add(health_pb2_grpc.add_HealthServicer_to_server, self._health)
        self._started = False
        self.port = 0

    def bind(self, address: str) -> int:
        """Bind `address` (`host:port`, port 0 = any) and return the port. Raises `GrpcBindError`."""
        try:
            if self._tls is None:
                self.port = self._server.add_insecure_port(address)
            else:
                self._served_tls = self._tls
                credentials = grpc.dynamic_ssl_server_credentials(
                    _certificate(self._tls),
                    self._changed_certificate,  # type: ignore[arg-type]  # its documentation allows None
                )
                self.port = self._server.add_secure_port(address, credentials)
        except RuntimeError as error:
            raise GrpcBindError(address) from error
        return self.port

    def add_service(self, name: str, add: Callable[[Any, grpc.aio.Server], None], servicer: object) -> None:
        """Serve `servicer` under its full name `name`; `add` is the generated function."""
        self._add(add, servicer)
        self._health.serve(name)

    def replace_tls(self, tls: GrpcTls) -> None:
        """Use another identity for handshakes from now on; only for a server created with `tls`."""
        self._tls = tls

    def _changed_certificate(self) -> grpc.ServerCertificateConfiguration | None:
        """The C core calls this before each handshake: the identity once after each change, else None.

        It must not return the same one again: grpcio 1.85 then makes a new TLS context per handshake and uses freed memory
        when handshakes fail; a few hundred connections with invalid bytes crashed the process (SIGSEGV, SIGABRT).
        """
        tls = self._tls
        if tls is None or tls is self._served_tls:
            return None
        self._served_tls = tls
        return _certificate(tls)

    async def start(self) -> None:
        """Start to serve."""
        self._started = True
        await self._server.start()

    async def wait(self) -> None:
        """Return when the server has stopped, for any reason."""
        await self._server.wait_for_termination()

    async def stop(self, grace_s: float) -> bool:
        """Refuse new calls, and cancel the running ones after `grace_s` seconds. True if all ended before that."""
        self._health.stop()
        loop = asyncio.get_running_loop()
        began = loop.time()
        await self._server.stop(grace_s)
        return loop.time() - began < grace_s

    async def close(self) -> None:
        """Stop at once and release the port; also if the server was not started, or has stopped."""
        if not self._started:
            await self.start()  # the library does not release the port of a server that was bound but not started
        await self.stop(0)

    def _add(self, add: Callable[[Any, grpc.aio.Server], None], servicer: object) -> None:
        add(servicer, self._server)


class Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # generated without types
    """`grpc.health.v1`, whose watches end when the listener drains (those of the library's servicer would not end)."""

    def __init__(self) -> None:
        self._services = {""}
        self._stopped = asyncio.Event()

    def serve(self, name: str) -> None:
        """Report service `name` as SERVING."""
        self._services.add(name)

    def stop(self) -> None:
        """Report every service as NOT_SERVING, and end all watches."""
        self._stopped.set()

    async def Check(  # noqa: N802 (name of the RPC)
        self, request: health_pb2.HealthCheckRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> health_pb2.HealthCheckResponse:
        """The status of one service; "" stands for the listener as a whole."""
        if request.service not in self._services:
            await context.abort(grpc.StatusCode.NOT_FOUND, "unknown service")
        return _STATUS(status=self._state(request.service))

    async def Watch(  # noqa: N802 (name of the RPC)
        self, request: health_pb2.HealthCheckRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> None:
        """Stream the status of one service: now, and when the listener drains."""
        await context.write(_STATUS(status=self._state(request.service)))
        await self._stopped.wait()
        await context.write(_STATUS(status=self._state(request.service)))

    def _state(self, service: str) -> Any:
        if service not in self._services:
            return _STATUS.SERVICE_UNKNOWN
        return _STATUS.NOT_SERVING if self._stopped.is_set() else _STATUS.SERVING


def _certificate(tls: GrpcTls) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(tls.key_pem, tls.cert_pem)])
