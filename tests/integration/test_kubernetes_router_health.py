"""The health port of `stargate-k8s-router`, over a real socket."""

import asyncio
import socket
from collections.abc import AsyncGenerator
from contextlib import suppress

import pytest

from kubernetes_router.health import CONNECTIONS, HealthServer
from kubernetes_router.metrics import Metrics
from support.waiting import eventually


class Health:
    def __init__(self) -> None:
        self.reason: str | None = None
        self.metrics = Metrics()
        self.server = HealthServer(self.metrics, not_ready=lambda: self.reason).listen()
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]

    async def ask(self, request: str) -> tuple[str, bytes]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(f"{request} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode())
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        writer.close()
        return head.decode().lower(), body


@pytest.fixture
async def health() -> AsyncGenerator[Health]:
    found = Health()
    await found.server.start(found.socket)
    yield found
    found.server.abort()
    await found.server.drain(1)


async def test_it_is_alive_and_ready_unless_there_is_a_reason(health: Health) -> None:
    assert (await health.ask("GET /livez"))[0].startswith("http/1.1 200")
    assert (await health.ask("GET /readyz"))[0].startswith("http/1.1 200")
    health.reason = "no router is ready"
    head, body = await health.ask("GET /readyz?verbose")
    assert (head[:12], body) == ("http/1.1 503", b"no router is ready\n")
    assert (await health.ask("GET /livez"))[0].startswith("http/1.1 200")


async def test_metrics_are_text_with_the_reload_counters_from_the_start(health: Health) -> None:
    head, body = await health.ask("GET /metrics")
    assert "content-type: text/plain; version=0.0.4; charset=utf-8" in head
    series = 'stargate_k8s_router_tls_reloads_total{material_type="server_identity",result='
    assert f'{series}"rejected"}} 0\n{series}"success"}} 0\n'.encode() in body


@pytest.mark.parametrize(("request_line", "status"), [("GET /", 404), ("POST /livez", 405), ("HEAD /livez", 200)])
async def test_nothing_else_is_there(health: Health, request_line: str, status: int) -> None:
    head, body = await health.ask(request_line)
    assert (head[:12], body) == (f"http/1.1 {status}", b"")


async def test_an_unusable_request_is_refused(health: Health) -> None:
    assert (await health.ask("GET /x y"))[0].startswith("http/1.1 400")


async def test_connections_are_bounded(health: Health) -> None:
    limit = CONNECTIONS.pieces or 0
    opened = [await asyncio.open_connection("127.0.0.1", health.port) for _ in range(limit)]
    await eventually(lambda: health.server.connections == limit)
    reader, writer = await asyncio.open_connection("127.0.0.1", health.port)
    with suppress(ConnectionResetError):
        assert await reader.read() == b""
    for _, one in [*opened, (reader, writer)]:
        one.close()
