"""TLS at the gRPC port of `stargate-k8s-router`."""

import ssl

import h2.events
import pytest

from certs import Identity, IdentityError, make_self_signed
from kubernetes_router.grpc_listener import WATCH
from kubernetes_router.grpc_tls import ServedTls, check_usable
from support.http2_peer import Peer, trusting
from support.kubernetes_router import door


async def test_tls_uses_a_new_identity_for_new_connections() -> None:
    old, new = make_self_signed(ip_addresses=["127.0.0.1"]), make_self_signed(ip_addresses=["127.0.0.1"])
    served = ServedTls(old)
    async with door(tls=served.context) as at:
        at.targets.publish([])
        first = await Peer.connect(at.port, trusting(old))
        assert first.writer.get_extra_info("ssl_object").selected_alpn_protocol() == "h2"
        await first.next(h2.events.SettingsAcknowledged)
        served.replace(new)
        with pytest.raises(ssl.SSLCertVerificationError):
            await Peer.connect(at.port, trusting(old))
        second = await Peer.connect(at.port, trusting(new))
        for peer in (first, second):
            stream_id = peer.request(WATCH)
            assert (await peer.next(h2.events.DataReceived, stream_id)).data == bytes(5)
            peer.close()


def test_a_pair_that_does_not_match_is_refused() -> None:
    one, two = make_self_signed(), make_self_signed()
    with pytest.raises(IdentityError, match="TLS server identity cannot be used"):
        check_usable(Identity(one.cert_pem, two.key_pem))
    check_usable(one)
