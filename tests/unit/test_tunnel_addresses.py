import pytest

from router.registry.tunnel import TunnelError
from router.tunnels.addresses import dial_target, is_bound_to


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


@pytest.mark.parametrize(
    "where",
    [
        *("255.255.255.255:9", "0.0.0.0:9", "0.1.2.3:9", "224.0.0.1:9", "240.0.0.1:9", "169.254.169.254:80"),
        *("127.0.0.1:0", "[::]:9", "[ff02::1]:9", "[fe80::1]:9", "[::ffff:224.0.0.1]:9", "[::ffff:0.0.0.0]:9"),
    ],
)
def test_what_is_not_one_host_is_not_dialled(where):
    with pytest.raises(TunnelError, match="no address of one host"):
        dial_target(f"quic://{where}")


@pytest.mark.parametrize(
    ("bound", "ip", "own"),
    [
        ("127.0.0.1", "127.0.0.1", True),
        ("127.0.0.1", "127.0.0.2", False),
        ("127.0.0.1", "::ffff:127.0.0.1", True),
        ("0.0.0.0", "127.0.0.2", True),
        ("0.0.0.0", "192.0.2.1", False),
        ("::", "127.0.0.1", True),
    ],
)
def test_our_own_sockets_are_known(bound, ip, own):
    assert is_bound_to((bound, 9), ip, 9) is own
    assert not is_bound_to((bound, 9), ip, 10)


def test_path_and_query_of_a_quic_url_are_ignored():
    assert dial_target("QUIC://127.0.0.1:4433/x?y=1") == ("127.0.0.1", 4433, 4)


def test_an_ipv6_worker_can_be_dialled():
    assert dial_target("quic://[::1]:4433") == ("::1", 4433, 6)
