import pytest

from router.ports.tunnels import TunnelError
from router.tunnels.addresses import dial_target


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://127.0.0.1:80", "target url is not quic scheme"),
        ("quic://127.0.0.1", "missing port in quic url"),
        ("quic://worker.example:4433", "quic inference_server_url host must be an IP address"),
        ("quic://:4433", "quic inference_server_url host must be an IP address"),
        ("quic://127.0.0.1:99999", "invalid quic url"),
        ("quic://[::1:1", "invalid quic url"),
    ],
)
def test_an_unusable_url_says_why(url, reason):
    with pytest.raises(TunnelError) as caught:
        dial_target(url)
    assert caught.value.reason == reason


def test_path_and_query_of_a_quic_url_are_ignored():
    assert dial_target("QUIC://127.0.0.1:4433/x?y=1") == ("127.0.0.1", 4433, 4)


def test_an_ipv6_worker_can_be_dialled():
    assert dial_target("quic://[::1]:4433") == ("::1", 4433, 6)
