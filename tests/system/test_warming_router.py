"""A real router that warms up: /readyz is 503, everything else works, and it becomes ready once."""

import asyncio
import signal

import pytest

from llm_request_router.testing import DNS_NAME, System
from support.name_server import name_server_in_a_thread
from support.registered_worker import RegisteredWorker, routable, unroutable

pytestmark = pytest.mark.loop("grpc")

ACTIVE = 'stargate_active_inference_servers{model="m",routing_key=""}'
QUICK = ["--readiness-stabilization-sample-interval-ms=20", "--readiness-stabilization-window=3"]


def readyz(system: System) -> int:
    return system.request("GET", "/readyz").status


def test_a_warming_router_serves_workers_and_clients_and_is_named_to_workers_by_its_peers() -> None:
    with name_server_in_a_thread() as server:
        host, port = server.address
        options = ["--pod-namespace=ns", "--dns-nameserver", f"{host}:{port}", "--dns-poll-ms=50"]
        options += ["--dns-resolver-ttl-ms=0"]
        warming = ["--pod-name=warming", "--readiness-warmup-ms=3600000"]
        with (
            System.start(*options, *warming, discovery=True) as young,
            System.start(*options, "--pod-name=old", discovery=True) as old,
        ):
            records = [
                f"0 0 {each.ports.grpc.rpartition(':')[2]} {name}.{DNS_NAME}."
                for name, each in (("warming", young), ("old", old))
            ]
            server.table = {(f"_grpc._tcp.{DNS_NAME}.", "SRV"): records}
            assert (readyz(old), readyz(young)) == (200, 503)
            assert young.request("GET", "/healthz").status == 200
            old.add_worker("m")  # knows the old router only
            young.router.until(lambda: young.metrics().get(ACTIVE), "the worker has found the warming router")
            assert young.chat("m").status == 200
            assert readyz(young) == 503
            assert young.metrics()['stargate_not_ready{reason="warming_up"}'] == 1
            young.router.send(signal.SIGTERM)
            assert young.router.wait() == 0
            assert "promoting replica" not in young.router.log()


def test_the_warm_up_ends_with_its_time_even_without_workers() -> None:
    with System.start("--readiness-warmup-ms=200", *QUICK) as system:
        system.router.until(lambda: readyz(system) == 200 or None, "ready")
        line = system.router.until_logged("readiness warmup window elapsed; promoting replica to ready")
        assert "warmup_ms=200" in line
        system.router.until_logged(" INFO ready ")
        log = system.router.log()
        assert log.count(" INFO ready ") == 1
        serving = next(line for line in log.splitlines() if "serving, and not ready before the warm-up is over" in line)
        assert f'http="{system.ports.http}"' in serving
        assert log.index(serving) < log.index(" INFO ready ")


async def test_a_stable_worker_ends_the_warm_up_and_its_end_does_not_bring_it_back() -> None:
    system = await asyncio.to_thread(System.start, "--readiness-warmup-ms=3600000", *QUICK)
    try:
        worker = await RegisteredWorker(system, "w1").start("m")
        await routable(system, "m")
        line = await asyncio.to_thread(system.router.until_logged, "backend count stabilized; promoting replica")
        assert "active_backends=1 stable_samples=3" in line
        assert await asyncio.to_thread(readyz, system) == 200
        await worker.stop()
        await unroutable(system, "m")
        assert await asyncio.to_thread(readyz, system) == 200
    finally:
        await asyncio.to_thread(system.close)
