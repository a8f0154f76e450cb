"""A worker that refuses the certificate of a router's tunnel listener says so once."""

import asyncio
import datetime as dt
from contextlib import asynccontextmanager

import pytest
from structlog.testing import capture_logs

from certs import make_self_signed
from stargate_client.certificate_failures import CertificateFailure, failure_of_tunnel
from stargate_client.settings import parse
from stargate_client.tunnel import ReverseTunnel, TunnelEndpoint
from support.quic_endpoints import quic_endpoints
from support.waiting import eventually
from tunnel_protocol.errors import ConnectionClosedError
from tunnel_protocol.quic.settings import QuicSettings
from tunnel_protocol.quic.tls import ServerTls

TRUSTED = make_self_signed(["router.example"])
EXPIRED = make_self_signed(["router.example"], days=1, now=dt.datetime(2020, 1, 1, tzinfo=dt.UTC))
OTHER_NAME = make_self_signed(["elsewhere.example"])
STRANGER = make_self_signed(["router.example"])


@asynccontextmanager
async def dialling(tmp_path, port):
    """A tunnel to a port of the loopback that dials again and again."""
    trust = tmp_path / "trust.pem"
    trust.write_bytes(b"".join(one.cert_pem for one in (TRUSTED, EXPIRED, OTHER_NAME)))
    settings = parse(
        ["--upstream-http-base-url=http://127.0.0.1:1", "--backend-connectivity=reverse", f"--tls-cert-path={trust}"],
        {},
    )
    tunnel = ReverseTunnel(settings, None, QuicSettings(), lambda: None)
    tunnel.point_to(TunnelEndpoint(f"router.example:{port}", f"127.0.0.1:{port}"))
    task = asyncio.create_task(tunnel.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})


async def test_each_kind_of_refused_certificate_of_a_tunnel_is_one_error(tmp_path, monkeypatch):
    monkeypatch.setattr("stargate_client.tunnel.FIRST_BACKOFF_S", 0.02)
    monkeypatch.setattr("stargate_client.tunnel.MAX_BACKOFF_S", 0.02)
    kinds = {
        CertificateFailure.UNKNOWN_ISSUER: STRANGER,
        CertificateFailure.NAME_MISMATCH: OTHER_NAME,
        CertificateFailure.OTHER: EXPIRED,
    }
    async with quic_endpoints(identity=STRANGER) as router:
        port = router.endpoint.local_address[1]
        with capture_logs() as logs:
            async with dialling(tmp_path, port):
                for identity in kinds.values():
                    router.endpoint.replace_tls(ServerTls(identity.cert_pem, identity.key_pem))
                    failed = len(router.failed)
                    await eventually(lambda failed=failed: len(router.failed) >= failed + 4)
                router.endpoint.replace_tls(ServerTls(TRUSTED.cert_pem, TRUSTED.key_pem))
                await eventually(lambda: router.accepted)
        told = [line for line in logs if line["log_level"] == "error"]
        assert [line["reason"] for line in told] == [kind.value for kind in kinds]
        assert {(line["operation"], line["host"], line["port"]) for line in told} == {("tunnel", "127.0.0.1", port)}
        assert "--tls-cert-path" in told[0]["action"]
        others = {line["error"] for line in logs if line["event"] == "reverse tunnel connection failed"}
        assert others <= {"refused by the router: pylon"}  # the router of this test expects nobody


@pytest.mark.parametrize(("code", "by_peer"), [(0x12A, True), (0x128, False), (0, False), (None, False)])
def test_an_end_for_another_reason_is_no_refused_certificate(code, by_peer):
    assert failure_of_tunnel(ConnectionClosedError(code, "hostname x", by_peer=by_peer)) is None
