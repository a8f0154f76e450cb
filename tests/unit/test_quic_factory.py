"""What the engine's factory makes of identities it cannot use and of datagrams that start nothing."""

import pytest
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.events import ConnectionTerminated
from cryptography.hazmat.primitives.asymmetric import x25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

import certs
from tunnel_protocol.quic.aioquic_handshake import AioquicFactory
from tunnel_protocol.quic.engine import destination_cid
from tunnel_protocol.quic.settings import QuicSettings
from tunnel_protocol.quic.tls import ServerTls

CLIENT = ("192.0.2.1", 4000)
IDENTITY = certs.make_self_signed(["stargate"])


def factory(*, serving=True):
    return AioquicFactory(QuicSettings(), ServerTls(IDENTITY.cert_pem, IDENTITY.key_pem) if serving else None)


def initial(version=b"\x00\x00\x00\x01", size=1_200):
    return (b"\xc3" + version + b"\x08" + b"d" * 8 + b"\x04" + b"s" * 4).ljust(size, b"\0")


def test_a_key_of_a_kind_that_cannot_sign_is_refused():
    key = x25519.X25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    with pytest.raises(ValueError, match="neither ECDSA, Ed25519 nor RSA"):
        factory().replace_tls(ServerTls(IDENTITY.cert_pem, key))


@pytest.mark.parametrize("data", [b"\xc3" + bytes(10), initial()[:20], initial()])
def test_a_datagram_that_is_no_clients_first_makes_no_connection(data):
    assert factory().accept(data, CLIENT, object(), 0.0) is None


def test_an_endpoint_that_only_dials_accepts_nobody():
    assert factory(serving=False).accept(initial(), CLIENT, object(), 0.0) is None


def test_the_reason_of_a_refusal_can_be_read_by_the_client():
    client = QuicConnection(configuration=QuicConfiguration(is_client=True, server_name="x"))
    client.connect(CLIENT, 0.0)
    first = client.datagrams_to_send(0.0)[0][0]
    client.receive_datagram(factory(serving=False).refuse(first, 2, "not here"), CLIENT, 0.1)
    client.handle_timer(client.get_timer())
    events = iter(client.next_event, None)
    (closed,) = [event for event in events if isinstance(event, ConnectionTerminated)]
    assert (closed.error_code, closed.reason_phrase) == (2, "not here")


@pytest.mark.parametrize("data", [b"", b"\x40" + bytes(30), initial()[:12]])
def test_there_is_no_refusing_what_cannot_be_read(data):
    assert factory().refuse(data) is None


@pytest.mark.parametrize(
    "data",
    [
        initial(version=b"\x1a\x2a\x3a\x4a", size=1_199),  # too small to be answered
        b"\x40".ljust(1_200, b"x"),  # no long header
        initial(),  # a version we speak
        initial(version=bytes(4)),  # a version negotiation itself
        (b"\xc3\x1a\x2a\x3a\x4a\x15" + b"d" * 21).ljust(1_200, b"\0"),  # an id longer than ids are
        (b"\xc3\x1a\x2a\x3a\x4a\x01d\x15").ljust(1_200, b"\0"),
    ],
)
def test_no_versions_are_offered_to(data):
    assert factory().answer_version(data) is None


def test_other_versions_are_answered_with_ours():
    answer = factory().answer_version(initial(version=b"\x1a\x2a\x3a\x4a"))
    assert answer[1:] == bytes(4) + b"\x04ssss\x08dddddddd\x00\x00\x00\x01"


@pytest.mark.parametrize(
    ("data", "cid"),
    [
        (b"", b""),
        (b"\xc0", b""),
        (b"\xc0abcd\x02", b""),
        (b"\xc0abcd\x02xy", b"xy"),
        (b"\x40" + b"12345678more", b"12345678"),
    ],
)
def test_the_destination_of_any_bytes_can_be_asked_for(data, cid):
    assert destination_cid(data) == cid
