"""The worker's gRPC connections with TLS: names and trust, failures that are logged once, and the end of connections."""

import asyncio
import datetime as dt
import socket
from contextlib import asynccontextmanager

import grpc
import grpc.aio
import pytest
from structlog.testing import capture_logs

from certs import Identity, make_self_signed
from stargate_client import tls_relay
from stargate_client.certificate_failures import (
    CertificateFailure,
    CertificateFailures,
    CertificateRefusedError,
    Operation,
)
from stargate_client.discovery import RouterDiscovery
from stargate_client.router_address import GrpcAddress, RouterAddress
from stargate_client.router_channel import router_channel
from stargate_client.router_trust import grpc_trust
from support.tls_terminator import tls_terminator
from support.waiting import eventually
from tunnel_protocol.control import stargate_pb2, stargate_pb2_grpc

pytestmark = pytest.mark.loop("grpc")

ROUTER = "router-0.routers.nvcf.svc:50071"
LOCALHOST = make_self_signed(["localhost"])
EXPIRED = make_self_signed(["localhost"], days=1, now=dt.datetime(2020, 1, 1, tzinfo=dt.UTC))


class Watched(stargate_pb2_grpc.StargateControlPlaneServicer):
    """Names one router, reached at `dial`; a watch stays open until `release`."""

    def __init__(self) -> None:
        self.dial = ""
        self.release = asyncio.Event()
        self.ended = 0

    async def WatchStargates(self, request, context):  # noqa: N802
        info = stargate_pb2.StargateInfo(stargate_id="router-0", advertise_addr=ROUTER, grpc_pylon_dial_addr=self.dial)
        try:
            yield stargate_pb2.WatchStargatesResponse(stargates=[info])
            await self.release.wait()
        finally:
            self.ended += 1


@asynccontextmanager
async def a_router():
    """(servicer, its cleartext address)."""
    server, watched = grpc.aio.server(), Watched()
    stargate_pb2_grpc.add_StargateControlPlaneServicer_to_server(watched, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield watched, f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


def trusting(tmp_path, *identities: Identity):
    bundle = tmp_path / "trust.pem"
    bundle.write_bytes(b"".join(identity.cert_pem for identity in identities))
    return grpc_trust(bundle, "--grpc-tls-ca-cert-path")


async def first_snapshot(address, trust, authority=ROUTER):
    async with router_channel(address, authority, trust) as channel:
        stub = stargate_pb2_grpc.StargateControlPlaneStub(channel)
        async for snapshot in stub.WatchStargates(stargate_pb2.WatchStargatesRequest()):
            return snapshot
    raise AssertionError("the watch ended without a snapshot")


async def refusal(address, trust):
    with pytest.raises(CertificateRefusedError) as refused:
        await first_snapshot(address, trust)
    return refused.value.kind


# --- names -----------------------------------------------------------------------------------------------------------


async def test_the_dial_host_is_the_server_name_and_the_router_the_authority(tmp_path):
    async with a_router() as (_, upstream), tls_terminator(LOCALHOST, upstream) as front:
        snapshot = await first_snapshot(GrpcAddress(f"localhost:{front.port}", tls=True), trusting(tmp_path, LOCALHOST))
        assert snapshot.stargates[0].advertise_addr == ROUTER
        assert front.server_names == ["localhost"]
        (call,) = front.calls
        assert (call[":authority"], call[":scheme"]) == (ROUTER, "https")


async def test_an_address_is_checked_against_the_addresses_of_the_certificate(tmp_path):
    numbered = make_self_signed([], ["127.0.0.1"])
    trust = trusting(tmp_path, numbered, LOCALHOST)
    async with a_router() as (_, upstream), tls_terminator(numbered, upstream) as front:
        address = GrpcAddress(f"127.0.0.1:{front.port}", tls=True)
        assert (await first_snapshot(address, trust)).stargates
        front.identity = LOCALHOST
        assert await refusal(address, trust) is CertificateFailure.NAME_MISMATCH


# --- failures --------------------------------------------------------------------------------------------------------


async def test_each_kind_of_refused_certificate_is_told_from_the_others(tmp_path):
    trust = trusting(tmp_path, LOCALHOST, EXPIRED, make_self_signed(["router-0"]))
    stranger, other_name = make_self_signed(["localhost"]), make_self_signed(["elsewhere"])
    trust.load_verify_locations(cadata=other_name.cert_pem.decode())
    async with a_router() as (_, upstream), tls_terminator(LOCALHOST, upstream) as front:
        address = GrpcAddress(f"localhost:{front.port}", tls=True)
        found = []
        for identity in (stranger, other_name, EXPIRED):
            front.identity = identity
            found.append(await refusal(address, trust))
        assert found == [CertificateFailure.UNKNOWN_ISSUER, CertificateFailure.NAME_MISMATCH, CertificateFailure.OTHER]
        assert not front.calls


async def test_a_peer_without_http2_and_one_that_is_not_there_are_no_certificate_failures(tmp_path):
    trust = trusting(tmp_path, LOCALHOST)
    async with tls_terminator(LOCALHOST, "127.0.0.1:1", alpn="http/1.1") as front:
        with pytest.raises(OSError, match="HTTP/2"):
            await first_snapshot(GrpcAddress(f"localhost:{front.port}", tls=True), trust)
    with pytest.raises(OSError, match=r"127\.0\.0\.1: .*[Cc]onnect"):
        await first_snapshot(GrpcAddress(f"127.0.0.1:{front.port}", tls=True), trust)
    for broken in ("localhost:none", f"{'x' * 64}.example:1"):
        with pytest.raises(OSError, match=broken.partition(":")[0]):
            await first_snapshot(GrpcAddress(broken, tls=True), trust)


async def test_a_peer_that_does_not_answer_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(tls_relay, "CONNECT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = GrpcAddress(f"127.0.0.1:{silent.getsockname()[1]}", tls=True)
        with pytest.raises(OSError, match=r"no TLS connection within 0\.2 s"):
            await first_snapshot(address, trusting(tmp_path, LOCALHOST))


async def test_all_addresses_of_a_host_are_tried(tmp_path, monkeypatch):
    """The first is refused, the second does not answer, the third offers a certificate that is not trusted."""
    monkeypatch.setattr(tls_relay, "CONNECT_S", 2.0)
    monkeypatch.setattr(tls_relay, "_SHARE_S", 0.0)
    trust = trusting(tmp_path, LOCALHOST)
    hosts = ["127.0.0.2", "127.0.0.3", "127.0.0.1"]

    async def resolve(host, port):
        return hosts

    monkeypatch.setattr(tls_relay, "_resolve", resolve)
    stranger = make_self_signed(["localhost"])
    async with a_router() as (_, upstream), tls_terminator(stranger, upstream) as front:
        address = GrpcAddress(f"localhost:{front.port}", tls=True)
        with socket.create_server(("127.0.0.3", front.port)):
            assert await refusal(address, trust) is CertificateFailure.UNKNOWN_ISSUER
            front.identity = LOCALHOST
            assert (await first_snapshot(address, trust)).stargates


async def test_a_name_server_that_does_not_answer_is_given_up(tmp_path, monkeypatch):
    async def resolve(host, port):
        await asyncio.Event().wait()

    monkeypatch.setattr(tls_relay, "CONNECT_S", 0.1)
    monkeypatch.setattr(tls_relay, "_resolve", resolve)
    with pytest.raises(TimeoutError, match=r"router\.example: no addresses within 0\.1 s"):
        await first_snapshot(GrpcAddress("router.example:1", tls=True), trusting(tmp_path, LOCALHOST))


def errors(logs):
    return [(line["reason"], line["host"], line["port"]) for line in logs if line["log_level"] == "error"]


def test_a_failure_is_logged_once_until_its_kind_changes_or_a_certificate_is_accepted():
    failures = CertificateFailures(Operation.REGISTER, "[::1]:7")
    unknown, name = CertificateFailure.UNKNOWN_ISSUER, CertificateFailure.NAME_MISMATCH
    with capture_logs() as logs:
        for kind in (unknown, unknown, name, name, unknown):
            failures.refused(kind)
        failures.accepted()
        failures.refused(unknown)
    assert errors(logs) == [(kind.value, "::1", 7) for kind in (unknown, name, unknown, unknown)]


async def test_a_watch_that_is_refused_again_and_again_is_logged_once_and_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr("stargate_client.discovery.RETRY_S", 0.02)
    found = []
    async with a_router() as (watched, upstream), tls_terminator(make_self_signed(["localhost"]), upstream) as front:
        seed = GrpcAddress(f"localhost:{front.port}", tls=True)
        watched.dial = f"https://{seed.target}"
        with capture_logs() as logs:
            watching = asyncio.create_task(RouterDiscovery(seed, trusting(tmp_path, LOCALHOST), found.append).run())
            await eventually(lambda: len(front.server_names) >= 4)
            front.identity = LOCALHOST
            await eventually(lambda: found)
            watching.cancel()
            await asyncio.wait({watching})
        assert errors(logs) == [(CertificateFailure.UNKNOWN_ISSUER.value, "localhost", front.port)]
        assert not [line for line in logs if line["log_level"] == "warning"]
        assert found == [frozenset([RouterAddress(ROUTER, seed)])]


# --- the end of connections ------------------------------------------------------------------------------------------


async def test_the_end_of_a_call_closes_the_connection_to_the_router(tmp_path):
    async with a_router() as (watched, upstream), tls_terminator(LOCALHOST, upstream) as front:
        address = GrpcAddress(f"localhost:{front.port}", tls=True)
        await first_snapshot(address, trusting(tmp_path, LOCALHOST))
        await eventually(lambda: watched.ended == 1)


async def test_a_lost_connection_ends_the_call(tmp_path):
    trust = trusting(tmp_path, LOCALHOST)
    async with (
        a_router() as (_, upstream),
        tls_terminator(LOCALHOST, upstream) as front,
        router_channel(GrpcAddress(f"localhost:{front.port}", tls=True), ROUTER, trust) as channel,
    ):
        stub = stargate_pb2_grpc.StargateControlPlaneStub(channel)
        call = stub.WatchStargates(stargate_pb2.WatchStargatesRequest())
        await call.read()
        await front.drop()
        async with asyncio.timeout(10):
            assert await call.code() is grpc.StatusCode.UNAVAILABLE


async def test_messages_of_megabytes_pass_in_pieces(tmp_path):
    async with a_router() as (watched, upstream), tls_terminator(LOCALHOST, upstream) as front:
        watched.dial = "x" * 3_000_000
        snapshot = await first_snapshot(GrpcAddress(f"localhost:{front.port}", tls=True), trusting(tmp_path, LOCALHOST))
        assert len(snapshot.stargates[0].grpc_pylon_dial_addr) == 3_000_000


async def test_another_process_cannot_use_the_connection(tmp_path, monkeypatch):
    """The local socket of a connection answers this process only: here the id that is compared is another one."""
    async with a_router() as (_, upstream), tls_terminator(LOCALHOST, upstream) as front:
        address = GrpcAddress(f"localhost:{front.port}", tls=True)
        async with tls_relay.tls_relay(address, trusting(tmp_path, LOCALHOST)) as target:
            monkeypatch.setattr(tls_relay.os, "getpid", lambda: -1)
            stranger = socket.socket(socket.AF_UNIX)
            stranger.settimeout(10)
            await asyncio.to_thread(stranger.connect, "\0" + target.partition(":")[2])
            assert await asyncio.to_thread(stranger.recv, 1) == b""
            stranger.close()
            monkeypatch.undo()
