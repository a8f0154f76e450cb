"""The HTTP server on the metrics port, over a real socket."""

import asyncio
import socket

from starlette.responses import JSONResponse
from starlette.routing import Route
from structlog.testing import capture_logs

from router.operators.server import CONNECTIONS, OperatorsServer
from router.telemetry.metrics import Metrics
from support.waiting import eventually


async def exchange(port: int, request: str) -> tuple[str, bytes]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"{request}\r\nhost: x\r\nconnection: close\r\n\r\n".encode())
    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    return head.decode().lower(), body


async def ask(*requests: str, all_families: bool = False) -> list[tuple[str, bytes]]:
    async def explain(_request: object) -> JSONResponse:
        return JSONResponse({"asked": True})

    bound = socket.create_server(("127.0.0.1", 0))
    metrics = Metrics()
    metrics.build_info.set(1, ("1", "abc"))
    server = OperatorsServer(metrics, all_families=all_families, mounts=[Route("/explain", explain)])
    serving = asyncio.create_task(server.serve(bound))
    async with asyncio.timeout(10):
        await server.wait_started()
        replies = [await exchange(bound.getsockname()[1], request) for request in requests]
        server.stop()
        await serving

    return replies


async def test_metrics_are_text_of_version_0_0_4_whatever_is_accepted() -> None:
    ((head, body),) = await ask("GET /metrics HTTP/1.1\r\naccept: application/openmetrics-text")
    assert head.startswith("http/1.1 200")
    assert "content-type: text/plain; version=0.0.4\r\n" in head + "\r\n"
    assert body.startswith(b"# HELP stargate_")
    assert b"build_info" not in body


async def test_head_is_answered_without_a_body_and_post_is_not_allowed() -> None:
    (head, body), (refused, nothing) = await ask("HEAD /metrics HTTP/1.1", "POST /metrics HTTP/1.1")
    assert (head[:12], body) == ("http/1.1 200", b"")
    assert (refused[:12], nothing) == ("http/1.1 405", b"")
    assert "allow: get,head\r\n" in refused + "\r\n"


async def test_other_paths_are_not_there() -> None:
    for head, body in await ask("GET / HTTP/1.1", "GET /metrics/ HTTP/1.1"):
        assert (head[:12], body) == ("http/1.1 404", b"")


async def test_all_families_have_a_page_of_their_own_or_the_only_one() -> None:
    ((_, everything),) = await ask("GET /metrics/all HTTP/1.1")
    assert b'stargate_build_info{commit="abc",version="1"} 1' in everything
    assert b"process_resident_memory_bytes" in everything
    ((_, configured),) = await ask("GET /metrics HTTP/1.1", all_families=True)
    assert b"stargate_build_info" in configured


async def test_other_packages_can_mount_pages() -> None:
    ((_, body),) = await ask("GET /explain HTTP/1.1")
    assert body == b'{"asked":true}'


async def test_a_server_that_ends_by_itself_is_started_again_and_fails_nobody() -> None:
    class Broken(Metrics):
        def render(self, *, additional: bool = False) -> bytes:
            raise RuntimeError("no page")

    bound = socket.create_server(("127.0.0.1", 0))
    port = bound.getsockname()[1]
    server = OperatorsServer(Broken(), all_families=False)
    serving = asyncio.create_task(server.serve(bound))
    heads = []
    with capture_logs() as lines:
        async with asyncio.timeout(20):
            await server.wait_started()
            heads.append((await exchange(port, "GET /metrics HTTP/1.1"))[0][:12])
            server.uvicorn.should_exit = True
            server.uvicorn.stopping.set()
            await eventually(lambda: any("started again" in line["event"] for line in lines))
            await server.wait_started()
            heads.append((await exchange(port, "GET /none HTTP/1.1"))[0][:12])
            server.stop()
            await serving

    assert heads == ["http/1.1 500", "http/1.1 404"]


async def test_connections_are_bounded() -> None:
    assert CONNECTIONS.pieces is not None

    bound = socket.create_server(("127.0.0.1", 0))
    port = bound.getsockname()[1]
    server = OperatorsServer(Metrics(), all_families=False)
    serving = asyncio.create_task(server.serve(bound))
    async with asyncio.timeout(20):
        await server.wait_started()
        opened = [await asyncio.open_connection("127.0.0.1", port) for _ in range(CONNECTIONS.pieces or 0)]
        await eventually(lambda: len(server.uvicorn.server_state.connections) == len(opened))
        refused = (await exchange(port, "GET /metrics HTTP/1.1"))[0][:12]
        for _, writer in opened:
            writer.close()
        server.stop()
        await serving

    assert (len(opened), refused) == (CONNECTIONS.pieces, "http/1.1 503")
