"""Server names, trust and limits as settings."""

import pytest

from tunnel_protocol.quic.settings import QuicSettings
from tunnel_protocol.quic.tls import ClientTls, host_of, server_name_for


@pytest.mark.parametrize(
    ("address", "host"),
    [
        ("pod-a.example:50072", "pod-a.example"),
        ("pod-a.example", "pod-a.example"),
        ("[2001:db8::1]:50072", "2001:db8::1"),
        ("::1:50072", "::1"),
        ("192.0.2.1:1", "192.0.2.1"),
    ],
)
def test_host_of_an_address(address, host):
    assert host_of(address) == host


@pytest.mark.parametrize(
    ("dial", "target", "name"),
    [
        ("a.example:1", "a.example:1", "a.example"),
        ("192.0.2.1:1", "pod-0.example:1", "pod-0.example"),
        ("lb.example:1", "192.0.2.1:1", "stargate"),
        ("localhost:1", "localhost:1", "stargate"),
        ("::1:50072", "::1:50072", "stargate"),
        ("[::1]:50072", "[::1]:50072", "stargate"),
    ],
)
def test_server_name(dial, target, name):
    assert server_name_for(dial, target) == name


def test_a_client_that_checks_needs_something_to_trust():
    with pytest.raises(ValueError, match="required"):
        ClientTls(None, "stargate")
    with pytest.raises(ValueError, match="no certificates"):
        ClientTls(b"", "stargate")
    ClientTls(None, "stargate", insecure=True)


@pytest.mark.parametrize(
    "values",
    [
        {"max_datagram_bytes": 1_199},
        {"ack_delay_ms": 26},
        {"stream_window_bytes": 0},
        {"keepalive_ms": -1},
        {"ack_every": 0},
    ],
)
def test_settings_quic_cannot_express_are_refused(values):
    with pytest.raises(ValueError, match="must"):
        QuicSettings(**values)
