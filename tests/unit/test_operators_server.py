"""The HTTP server on the metrics port, over a real socket."""

import asyncio
import socket

from starlette.responses import JSONResponse
from starlette.routing import Route

from router.telemetry.metrics import Metrics
from router.telemetry.operators_server import OperatorsServer


async def exchange(port: int, request: str) -> tuple[str, bytes]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"{request}\r\nhost: x\r\nconnection: close\r\n\r\n".encode())
    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    return head.decode().lower(), body


def ask(*requests: str, all_families: bool = False) -> list[tuple[str, bytes]]:
    async def explain(_request: object) -> JSONResponse:
        return JSONResponse({"asked": True})

    async def run() -> list[tuple[str, bytes]]:
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

    return asyncio.run(run())


def test_metrics_are_text_of_version_0_0_4_whatever_is_accepted() -> None:
    ((head, body),) = ask("GET /metrics HTTP/1.1\r\naccept: application/openmetrics-text")
    assert head.startswith("http/1.1 200")
    assert "content-type: text/plain; version=0.0.4\r\n" in head + "\r\n"
    assert body.startswith(b"# HELP stargate_tls_reloads_total")
    assert b"build_info" not in body


def test_head_is_answered_without_a_body_and_post_is_not_allowed() -> None:
    (head, body), (refused, nothing) = ask("HEAD /metrics HTTP/1.1", "POST /metrics HTTP/1.1")
    assert (head[:12], body) == ("http/1.1 200", b"")
    assert (refused[:12], nothing) == ("http/1.1 405", b"")
    assert "allow: get,head\r\n" in refused + "\r\n"


def test_other_paths_are_not_there() -> None:
    for head, body in ask("GET / HTTP/1.1", "GET /metrics/ HTTP/1.1"):
        assert (head[:12], body) == ("http/1.1 404", b"")


def test_all_families_have_a_page_of_their_own_or_the_only_one() -> None:
    ((_, everything),) = ask("GET /metrics/all HTTP/1.1")
    assert b'stargate_build_info{commit="abc",version="1"} 1' in everything
    assert b"process_resident_memory_bytes" in everything
    ((_, configured),) = ask("GET /metrics HTTP/1.1", all_families=True)
    assert b"stargate_build_info" in configured


def test_other_rooms_can_mount_pages() -> None:
    ((_, body),) = ask("GET /explain HTTP/1.1")
    assert body == b'{"asked":true}'
