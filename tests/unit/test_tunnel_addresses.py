import pytest

from router.registry.tunnel import TunnelError
from router.tunnels.addresses import advertised_host, dial_target, reverse_addresses


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


def test_the_advertised_host_comes_from_the_template():
    assert advertised_host(None, "pod-a", "ns") == "pod-a.stargate.external"
    assert advertised_host("{pod_name}.h.{namespace}.svc", "pod-a", "ns") == "pod-a.h.ns.svc"


def test_a_listener_on_an_ephemeral_port_advertises_the_bound_one_and_keeps_the_dial_override_apart():
    assert reverse_addresses("pod-a.example", 40001, " 10.0.0.1:50072 ") == ("pod-a.example:40001", "10.0.0.1:50072")


@pytest.mark.parametrize("blank", [None, "", "  "])
def test_a_blank_dial_override_means_the_target(blank):
    assert reverse_addresses("pod-a.example", 1, blank) == ("pod-a.example:1", "pod-a.example:1")


def test_an_ipv6_host_is_bracketed():
    assert reverse_addresses("::1", 50072, None).target == "[::1]:50072"
