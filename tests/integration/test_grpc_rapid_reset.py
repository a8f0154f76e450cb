"""HTTP/2 rapid reset (CVE-2023-44487) on a gRPC port: the connection is closed, and nobody else notices."""

import asyncio
import sys
from pathlib import Path

import pytest

from router.grpc.http2_connection import RESETS
from support import rapid_reset
from support.control_plane import control_plane, report
from support.waiting import DEADLINE_S
from tunnel_protocol.control import stargate_pb2

pytestmark = pytest.mark.loop("grpc")

METHODS = [
    "/stargate.StargateControlPlane/RegisterInferenceServer",
    "/stargate.StargateControlPlane/WatchStargates",
    "/grpc.health.v1.Health/Check",
    "/no.such.Service/Method",
]


async def flood(port: int, path: str, connections: int = 1) -> list[int]:
    """Calls on each connection until it was closed."""
    peer = await asyncio.create_subprocess_exec(
        *(sys.executable, rapid_reset.__file__, str(port), path, str(connections)), stdout=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(3 * DEADLINE_S):
        out, _ = await peer.communicate()
    assert peer.returncode == 0
    return [int(line) for line in out.split()]


def resident_mb() -> float:
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


@pytest.mark.parametrize("path", METHODS)
async def test_a_peer_that_resets_calls_at_once_is_cut_off(path: str) -> None:
    async with control_plane() as client:
        (calls,) = await flood(client.router.server.port, path)
        # What the sockets hold goes on until the sender sees the end.
        assert calls < 20 * (RESETS.pieces or 0)


async def test_worker_and_watcher_are_not_disturbed_and_memory_is_bounded() -> None:
    async with control_plane() as client:
        worker, _ = await client.register("w")
        watch = client.control.WatchStargates(stargate_pb2.WatchStargatesRequest())
        await watch.initial_metadata()
        await flood(client.router.server.port, METHODS[0])
        before = resident_mb()
        await flood(client.router.server.port, METHODS[0], connections=2)
        assert resident_mb() - before < 20
        await worker.update(report("w", "m"))
        published = stargate_pb2.WatchStargatesResponse(stargates=[stargate_pb2.StargateInfo(stargate_id="router-0")])
        client.router.watch.publish(published)
        assert await watch.read() == published
        assert client.router.routable("m") == ["w"]
