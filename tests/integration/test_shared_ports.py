"""The ports that processes of one router share: opened and closed as asked, with their reason if that is not possible."""

import asyncio
import socket
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from certs import make_self_signed
from router.config.option_values import SocketAddress
from router.config.startup_checks import StartupError
from router.grpc.server import GrpcTls
from router.http1.server import HttpServer
from router.process.shared_ports import SharedGrpcServer, SharedPorts
from router.process.sockets import bind_tcp, bound_address, reserve_tcp
from support.package_settings import http_settings
from support.waiting import eventually

ANY = SocketAddress("127.0.0.1", 0)
OPTIONS = ("--option=x",)


def accepts(address: SocketAddress) -> bool:
    try:
        socket.create_connection((address.host, address.port), timeout=5).close()
    except ConnectionRefusedError:
        return False
    return True


class Ports:
    """Both shared ports of one process, on reserved addresses."""

    def __init__(self, http: SocketAddress, models: SocketAddress, tls: GrpcTls | None = None) -> None:
        handler: Any = SimpleNamespace()
        self.http = HttpServer(handler, asyncio.get_running_loop().time, http_settings())
        self.models = SharedGrpcServer(models, "model-discovery", OPTIONS, tls)
        self.changes = 0
        self.shared = SharedPorts(self.http, http, OPTIONS, self.models, self.changed)
        self.running = asyncio.create_task(self.shared.run())

    def changed(self) -> None:
        self.changes += 1

    async def close(self) -> None:
        self.running.cancel()
        await asyncio.wait([self.running])
        await self.http.drain(0)
        await self.models.close()


@pytest.mark.loop("grpc")
async def test_both_ports_open_and_close_as_asked_and_stay_closed_after_the_drain() -> None:
    with reserve_tcp(ANY, "HTTP", OPTIONS) as http, reserve_tcp(ANY, "model-discovery", OPTIONS) as models:
        addresses = bound_address(http), bound_address(models)
        ports = Ports(*addresses)
        await ports.models.start()
        assert not any(accepts(address) for address in addresses)
        for wanted in (True, False, True):
            ports.shared.ask(not wanted)
            ports.shared.ask(wanted)
            await eventually(lambda wanted=wanted: ports.shared.listening is wanted)  # type: ignore[misc]
            assert [accepts(address) for address in addresses] == [wanted, wanted]
        assert ports.changes == 3
        assert await ports.http.drain(0) in (True, False)
        ports.shared.ask(False)
        await eventually(lambda: not ports.shared.listening)
        ports.shared.ask(True)
        await asyncio.sleep(0)
        assert not ports.shared.listening
        waiting = asyncio.create_task(ports.models.wait())
        assert await ports.models.stop(0)
        await waiting
        await ports.close()


@pytest.mark.loop("grpc")
@pytest.mark.parametrize("taken", ["HTTP", "model-discovery"])
async def test_a_port_that_cannot_be_opened_is_named(taken: str) -> None:
    with bind_tcp(ANY, taken, ()) as busy, reserve_tcp(ANY, "other", ()) as free:
        addresses = [bound_address(busy), bound_address(free)]
        ports = Ports(*(addresses if taken == "HTTP" else addresses[::-1]))
        ports.shared.ask(True)
        await asyncio.wait([ports.running])
        error = ports.running.exception()
        assert isinstance(error, StartupError)
        assert (error.message, error.options) == (f"failed to bind {taken} listener", OPTIONS)
        await ports.close()


@pytest.mark.loop("grpc")
async def test_a_port_with_tls_is_opened_with_the_newest_certificate() -> None:
    identities = [make_self_signed(["localhost"]) for _ in range(3)]
    tls = [GrpcTls(cert_pem=one.cert_pem, key_pem=one.key_pem) for one in identities]
    with reserve_tcp(ANY, "model-discovery", OPTIONS) as reserved:
        address = bound_address(reserved)
        server = SharedGrpcServer(address, "model-discovery", OPTIONS, tls[0])
        server.replace_tls(tls[1])
        await server.listen()

        async def asked(trusted: GrpcTls) -> int:
            credentials = grpc.ssl_channel_credentials(trusted.cert_pem)
            async with grpc.aio.secure_channel(f"localhost:{address.port}", credentials) as channel:
                stub = health_pb2_grpc.HealthStub(channel)
                answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=10)
                return int(answer.status)

        assert await asked(tls[1]) == health_pb2.HealthCheckResponse.SERVING
        server.replace_tls(tls[2])
        assert await asked(tls[2]) == health_pb2.HealthCheckResponse.SERVING
        await server.close()
