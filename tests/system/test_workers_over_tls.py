"""A real worker that reaches a real router over gRPC with TLS: through a load balancer, and at the router's own TLS port."""

import asyncio
import datetime as dt
import os
from contextlib import asynccontextmanager

import pytest

from certs import make_self_signed
from llm_request_router import programs
from llm_request_router.testing import System
from support.relay import TcpRelay
from support.tls_terminator import tls_terminator
from support.waiting import eventually

pytestmark = pytest.mark.loop("grpc")

LOCALHOST = make_self_signed(["localhost"])
REFUSED = "certificate of a router refused; trying again"


@asynccontextmanager
async def started(*options, environment=None):
    system = await asyncio.to_thread(System.start, *options, environment=environment)
    try:
        yield system
    finally:
        await asyncio.to_thread(system.close)


def bundle(tmp_path, *identities):
    path = tmp_path / "trust.pem"
    path.write_bytes(b"".join(identity.cert_pem for identity in identities))
    return f"--grpc-tls-ca-cert-path={path}"


def worker(system, name, *options, environment=None):
    """A worker that does not need an engine to start."""
    command = (
        *programs.command("stargate_client"),
        "--upstream-http-base-url=http://127.0.0.1:9",
        f"--inference-server-id={name}",
        "--backend-connectivity=reverse",
        "--model-name=m",
        "--disable-bringup",
        "--quic-insecure",
    )
    return system.spawn(name, [*command, *options], {**programs.environment(os.environ), **(environment or {})})


async def test_a_worker_registers_through_a_load_balancer_that_ends_tls(tmp_path):
    async with tls_terminator(LOCALHOST) as front:
        dial = f"https://localhost:{front.port}"
        async with started(f"--grpc-pylon-dial-addr={dial}") as system:
            front.upstream = system.ports.grpc
            options = (f"--stargate-address={dial}", bundle(tmp_path, LOCALHOST))
            await asyncio.to_thread(system.add_worker, "tiny-model", options=options)
            assert (await asyncio.to_thread(system.chat, "tiny-model")).status == 200
            called = {call[":path"].rpartition("/")[2]: call for call in front.calls}
            assert called["WatchStargates"][":authority"] == f"localhost:{front.port}"
            assert called["RegisterInferenceServer"][":authority"] == system.ports.grpc != f"localhost:{front.port}"
            assert {call[":scheme"] for call in front.calls} == {"https"}
            assert set(front.server_names) == {"localhost"}
            assert REFUSED not in system.workers[0].process.log()


async def test_a_worker_registers_at_the_own_tls_port_of_a_router(tmp_path):
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    cert.write_bytes(LOCALHOST.cert_pem)
    key.write_bytes(LOCALHOST.key_pem)
    serving = (f"--grpc-tls-cert-path={cert}", f"--grpc-tls-key-path={key}")
    with TcpRelay() as relay:  # its port is known before the router's
        dial = f"https://localhost:{relay.port}"
        async with started(*serving, f"--grpc-pylon-dial-addr={dial}") as system:
            relay.target_port = int(system.ports.grpc.rpartition(":")[2])
            options = (f"--stargate-address={dial}", bundle(tmp_path, LOCALHOST))
            await asyncio.to_thread(system.add_worker, "tiny-model", options=options)
            assert (await asyncio.to_thread(system.chat, "tiny-model")).status == 200


async def test_a_refused_certificate_is_one_error_until_it_is_another_or_accepted(tmp_path):
    stranger = make_self_signed(["localhost"])
    expired = make_self_signed(["localhost"], days=1, now=dt.datetime(2020, 1, 1, tzinfo=dt.UTC))
    async with tls_terminator(stranger) as front:
        dial = f"https://localhost:{front.port}"
        async with started(f"--grpc-pylon-dial-addr={dial}") as system:
            front.upstream = system.ports.grpc
            process = worker(system, "w", f"--stargate-address={dial}", bundle(tmp_path, LOCALHOST, expired))
            await eventually(lambda: len(front.server_names) >= 3)
            assert process.log().count(REFUSED) == 1
            assert f"port={front.port}" in process.log()
            assert "unknown issuer" in process.log()
            front.identity = expired
            await eventually(lambda: process.log().count(REFUSED) == 2)
            assert "certificate chain is not valid" in process.log()
            front.identity = LOCALHOST
            await eventually(lambda: "reverse tunnel connection established" in process.log())
            assert process.log().count(REFUSED) == 2


@pytest.mark.parametrize("how", ["option", "variable", "trust of tunnels"])
async def test_an_unusable_bundle_ends_the_start_with_one_line(tmp_path, how):
    missing = tmp_path / "missing.pem"
    async with started() as system:
        options, environment, named = {
            "option": ([f"--grpc-tls-ca-cert-path={missing}"], {}, "--grpc-tls-ca-cert-path"),
            "variable": ([], {"STARGATE_GRPC_TLS_CA_CERT_PATH": str(missing)}, "--grpc-tls-ca-cert-path"),
            "trust of tunnels": ([f"--tls-cert-path={missing}"], {}, "--tls-cert-path"),
        }[how]
        process = worker(system, "w", *options, environment=environment)
        assert await asyncio.to_thread(process.wait) == 1
        (line,) = [line for line in process.log().splitlines() if line.startswith("Error:")]
        assert (
            line
            == f"Error: {named}: {missing} cannot be used: failed to open trust bundle file {missing}: No such file or directory"
        )


async def test_the_trust_of_tunnels_serves_grpc_too(tmp_path):
    tunnels = tmp_path / "tunnels.pem"
    tunnels.write_bytes(LOCALHOST.cert_pem)
    async with tls_terminator(LOCALHOST) as front:
        dial = f"https://localhost:{front.port}"
        async with started(f"--grpc-pylon-dial-addr={dial}") as system:
            front.upstream = system.ports.grpc
            process = worker(system, "w", f"--stargate-address={dial}", f"--tls-cert-path={tunnels}")
            await eventually(lambda: "reverse tunnel connection established" in process.log())
