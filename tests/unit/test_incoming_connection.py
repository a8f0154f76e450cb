"""The handshake conversation with a scripted peer that acknowledges nothing, where real QUIC would be too obliging."""

import asyncio

import pytest
from structlog.testing import capture_logs

from router.ports.identity import Identity
from router.registry.registry import Registry
from router.telemetry.credential_failures import CredentialFailures
from router.telemetry.metrics import Metrics
from router.tunnels.incoming import IncomingConnection
from router.tunnels.reverse_tunnels import ReverseTunnels
from support.fake_quic import FakeConnection, FakeStream, LineFraming
from support.package_settings import tunnel_settings
from tunnel_protocol import capnp
from tunnel_protocol.errors import ConnectionClosedError

pytestmark = pytest.mark.loop("virtual")


class Anyone:
    async def routing_key(self, token):
        return None


class HandshakeContext:
    def __init__(self):
        self.registrations = Registry()
        self.authenticator = Anyone()
        self.framing = LineFraming()
        self.settings = tunnel_settings()
        self.metrics = Metrics()
        self.credential_failures = CredentialFailures(self.metrics)
        self.over = []

    def identified(self, incoming, server_id):
        pass

    def decided(self, incoming):
        self.over.append(incoming)


class PeerConnection(FakeConnection):
    peer_address = ("192.0.2.1", 40000)


def arrive(context):
    connection = PeerConnection()
    incoming = IncomingConnection(connection, context)
    stream = FakeStream(None, 0)
    stream.handler = incoming.on_stream(stream)
    return connection, incoming, stream


async def settle():
    for _ in range(3):
        await asyncio.sleep(0)


async def test_the_connection_closes_as_soon_as_the_refusal_was_acknowledged():
    connection, _, stream = arrive(HandshakeContext())
    stream.handler.on_data(capnp.encode_handshake("nobody", None), True)
    await settle()
    assert capnp.decode_handshake_ack(stream.sent) == (False, "unauthorized inference_server_id")
    assert stream.fin
    assert connection.closes == []
    stream.sent_callbacks[0]()
    assert connection.closes == [(0, "")]


async def test_a_refusal_that_is_never_acknowledged_is_given_up_after_the_connect_timeout():
    connection, _, stream = arrive(HandshakeContext())
    stream.handler.on_data(capnp.encode_handshake("nobody", None), True)
    await asyncio.sleep(1.9)
    assert connection.closes == []
    with capture_logs() as logs:
        await asyncio.sleep(0.2)
    assert connection.closes == [(0, "")]
    assert logs == [
        {
            "event": "timed out waiting for reverse handshake NACK delivery",
            "log_level": "warning",
            "timeout_ms": 2000,
        }
    ]


async def test_a_tunnel_is_installed_before_the_answer_is_written():
    context = HandshakeContext()
    tunnels = ReverseTunnels(Identity("w1", "w1", "http://e", None, True), context.settings, Metrics())
    context.registrations.begin(tunnels.identity, tunnels)
    _, incoming, stream = arrive(context)
    write, healthy_at_write = stream.write, []

    def spy(data, fin=False):
        healthy_at_write.append(tunnels.healthy())
        return write(data, fin)

    stream.write = spy
    stream.handler.on_data(capnp.encode_handshake("w1", None), True)
    await settle()
    assert healthy_at_write == [True]
    assert capnp.decode_handshake_ack(stream.sent) == (True, "")
    assert context.over == [incoming]
    incoming.on_closed(ConnectionClosedError(0, "", by_peer=True))
    assert not tunnels.slot.members


async def test_a_handshake_without_fin_is_enough_and_nothing_more_is_read():
    _, _, stream = arrive(HandshakeContext())
    stream.handler.on_data(capnp.encode_handshake("nobody", None), False)
    assert stream.calls == ["stop 0"]
    stream.handler.on_data(b"more", True)
    await settle()
    assert stream.fin


async def test_only_the_first_stream_is_taken():
    _, incoming, _ = arrive(HandshakeContext())
    assert incoming.on_stream(FakeStream(None, 4)) is None
    incoming.on_closed(ConnectionClosedError(None, "", by_peer=False))


async def test_a_peer_that_never_speaks_is_closed_at_the_deadline_and_not_before():
    context = HandshakeContext()
    connection, _, _ = arrive(context)
    await asyncio.sleep(9.9)
    assert connection.closes == []
    await asyncio.sleep(0.2)
    assert connection.closes == [(0, "")]
    assert len(context.over) == 1
