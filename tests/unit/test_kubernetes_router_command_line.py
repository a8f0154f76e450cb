"""The command line of `stargate-k8s-router`, and the checks before its start."""

from pathlib import Path

import pytest

from certs import make_self_signed
from kubernetes_router.kubernetes_api import ApiAddress, api_address
from kubernetes_router.settings import COMMAND_LINE, SERVICE_ACCOUNT, Settings
from kubernetes_router.startup_checks import check_options, pylon_dial_addr, remote_watch_urls
from router.config.command_line import UsageError
from router.config.startup_checks import StartupError

REQUIRED = ("--target-namespace=nvcf", "--grpc-pylon-dial-addr=http://door:50071")
DEFAULT_CHART = """
    --listen-addr=0.0.0.0:50071
    --reverse-tunnel-listen-addr=0.0.0.0:50072
    --health-listen-addr=0.0.0.0:8080
    --target-namespace=nvcf
    --target-service-name=llm-request-router-headless
    --advertised-hostname-template={pod_name}.llm-request-router-headless.nvcf.svc.cluster.local
    --advertised-grpc-port=50071
    --grpc-pylon-dial-addr=http://llm-request-router-backend-router.nvcf.svc.cluster.local:50071
    --watch-heartbeat-ms=5000
    --shutdown-drain-timeout-ms=30000
    --grpc-port-name=grpc
    --quic-port-name=quic
    --tunnel-protocol=raw-quic
    --quic-insecure
"""


def settings(*arguments: str, env: dict[str, str] | None = None) -> Settings:
    return COMMAND_LINE.parse([*REQUIRED, *arguments], env or {})


def test_the_arguments_of_the_default_chart_are_accepted() -> None:
    found = COMMAND_LINE.parse(DEFAULT_CHART.split(), {})
    check_options(found)
    assert (str(found.listen_addr), str(found.reverse_tunnel_listen_addr)) == ("0.0.0.0:50071", "0.0.0.0:50072")
    assert found.target_service_name == "llm-request-router-headless"


@pytest.mark.parametrize(
    "added",
    [
        ["--remote-stargate-url=https://a:1", "--remote-stargate-url=https://b:2"],
        ["--remote-stargate-url=http://a:1", "--allow-insecure-remote-watch-http"],
        ["--tunnel-protocol=webtransport"],
    ],
)
def test_so_are_its_optional_ones(added: list[str]) -> None:
    given = {argument.partition("=")[0] for argument in added}
    chart = [argument for argument in DEFAULT_CHART.split() if argument.partition("=")[0] not in given]
    check_options(COMMAND_LINE.parse([*chart, *added], {}))


def test_defaults_are_those_of_the_reference() -> None:
    found = settings()
    assert (str(found.listen_addr), str(found.reverse_tunnel_listen_addr)) == ("0.0.0.0:50071", "0.0.0.0:50072")
    assert str(found.health_listen_addr) == "0.0.0.0:8080"
    assert found.target_service_name == "stargate-headless"
    assert found.advertised_hostname_template == "{pod_name}.stargate.external"
    assert (found.advertised_grpc_port, found.grpc_port_name, found.quic_port_name) == (50071, "grpc", "quic")
    assert (found.watch_heartbeat_ms, found.shutdown_drain_timeout_ms, found.connect_timeout_ms) == (5000, 30000, 5000)
    assert (found.relay_idle_timeout_ms, found.relay_keep_alive_ms) == (300_000, 10_000)
    assert (found.tunnel_protocol, found.quic_insecure) == ("raw-quic", False)


def test_the_namespace_may_come_from_the_environment() -> None:
    found = COMMAND_LINE.parse(["--grpc-pylon-dial-addr=http://door:1"], {"POD_NAMESPACE": "elsewhere"})
    assert found.target_namespace == "elsewhere"
    assert settings(env={"POD_NAMESPACE": "elsewhere"}).target_namespace == "nvcf"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following required arguments were not provided:\n  --target-namespace <NAMESPACE>\n"),
        (
            ["--target-namespace=n"],
            "the following required arguments were not provided:\n  --grpc-pylon-dial-addr <URI>",
        ),
        ([*REQUIRED, "--nope"], "unexpected argument '--nope' found"),
        ([*REQUIRED, "--listen-addr=host:1"], "invalid value 'host:1' for '--listen-addr <IP:PORT>': invalid socket"),
        (
            [*REQUIRED, "--advertised-grpc-port=0"],
            "invalid value '0' for '--advertised-grpc-port <PORT>': value must be",
        ),
        ([*REQUIRED, "--watch-heartbeat-ms=0"], "invalid value '0' for '--watch-heartbeat-ms <MS>': value must be"),
        ([*REQUIRED, "--shutdown-drain-timeout-ms=0"], "invalid value '0' for '--shutdown-drain-timeout-ms <MS>'"),
        ([*REQUIRED, "--tunnel-protocol=http3"], "invalid value 'http3' for '--tunnel-protocol <PROTOCOL>'"),
    ],
)
def test_usage_errors_are_told(arguments: list[str], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        COMMAND_LINE.parse(arguments, {})
    assert caught.value.message.startswith(message)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--relay-idle-timeout-ms=0"], "--relay-idle-timeout-ms must be greater than 0"),
        (["--relay-keep-alive-ms=300000"], "--relay-keep-alive-ms must be less than --relay-idle-timeout-ms"),
        (["--tls-cert-path=c"], "--tls-key-path is required with --tls-cert-path"),
        (["--tls-key-path=k"], "--tls-cert-path is required with --tls-key-path"),
        (["--grpc-tls-cert-path=c"], "--grpc-tls-key-path is required with --grpc-tls-cert-path"),
        (["--remote-stargate-url=a:1"], "--remote-stargate-url must be an explicit http:// or https:// URI"),
        (["--remote-stargate-url=http://a:1"], "http:// remote Watch URLs require --allow-insecure-remote-watch-http"),
        (["--upstream-tls-cert-path=/nowhere"], "No such file or directory (os error 2)"),
    ],
)
def test_values_that_cannot_be_used_fail_the_start(arguments: list[str], message: str) -> None:
    with pytest.raises(StartupError) as caught:
        check_options(settings(*arguments))
    assert caught.value.message == message


@pytest.mark.parametrize(
    "uri",
    [
        "door:50071",
        "",
        "ftp://door:1",
        "http://",
        "http://door:99999",
        "http://[x",
        "http://door/path",
        "http://user@door",
    ],
)
def test_the_address_for_workers_is_an_explicit_uri(uri: str) -> None:
    found = COMMAND_LINE.parse(["--target-namespace=n", f"--grpc-pylon-dial-addr={uri}"], {})
    with pytest.raises(StartupError, match="--grpc-pylon-dial-addr must be an explicit http:// or https:// URI"):
        check_options(found)


@pytest.mark.parametrize("uri", ["http://door:50071", "https://door.example.org", "https://[::1]:443"])
def test_such_uris_are_published_as_they_are(uri: str) -> None:
    found = COMMAND_LINE.parse(["--target-namespace=n", f"--grpc-pylon-dial-addr= {uri}"], {})
    check_options(found)
    assert pylon_dial_addr(found) == uri


def test_a_relay_without_keep_alive_is_allowed() -> None:
    check_options(settings("--relay-keep-alive-ms=0"))


def test_remote_uris_are_unique_and_sorted() -> None:
    found = settings("--remote-stargate-url=https://b:2, https://a:1", "--remote-stargate-url=https://b:2")
    assert remote_watch_urls(found) == ["https://a:1", "https://b:2"]
    from_environment = settings(env={"STARGATE_REMOTE_WATCH_URLS": "https://b:2,https://a:1,"})
    assert remote_watch_urls(from_environment) == ["https://a:1", "https://b:2"]


def test_a_trust_bundle_is_checked(tmp_path: Path) -> None:
    bundle = tmp_path / "ca.pem"
    bundle.write_bytes(make_self_signed().cert_pem)
    check_options(settings(f"--upstream-tls-cert-path={bundle}"))
    bundle.write_text("no certificate")
    with pytest.raises(StartupError, match="load upstream TLS trust bundle") as caught:
        check_options(settings(f"--upstream-tls-cert-path={bundle}"))
    assert caught.value.causes == ("TLS trust bundle contains no certificates",)


def test_the_help_names_every_option_and_an_example() -> None:
    shown = COMMAND_LINE.help_text()
    for option in COMMAND_LINE.options:
        assert option.shown in shown
    assert "  stargate-k8s-router --target-namespace nvcf" in shown
    assert max(len(line) for line in shown.splitlines()) <= 120


CLUSTER = {"KUBERNETES_SERVICE_HOST": "10.96.0.1", "KUBERNETES_SERVICE_PORT": "443"}


@pytest.mark.parametrize(
    ("host", "url"), [("10.96.0.1", "https://10.96.0.1:443"), ("fd00::1", "https://[fd00::1]:443")]
)
def test_the_kubernetes_api_is_that_of_the_pod(host: str, url: str) -> None:
    found = api_address(settings(), {**CLUSTER, "KUBERNETES_SERVICE_HOST": host})
    assert found == ApiAddress(url, f"{SERVICE_ACCOUNT}/token", f"{SERVICE_ACCOUNT}/ca.crt")


def test_or_the_one_that_is_given() -> None:
    arguments = ("--kubernetes-api-url=https://api:6443/", "--kubernetes-token-path=t", "--kubernetes-ca-path=c")
    assert api_address(settings(*arguments), CLUSTER) == ApiAddress("https://api:6443", "t", "c")


@pytest.mark.parametrize("environment", [{}, {"KUBERNETES_SERVICE_HOST": "x"}, {"KUBERNETES_SERVICE_PORT": "1"}])
def test_outside_of_a_cluster_it_must_be_given(environment: dict[str, str]) -> None:
    with pytest.raises(StartupError, match="--kubernetes-api-url gives the address"):
        api_address(settings(), environment)


@pytest.mark.parametrize("url", ["http://api:6443", "api:6443", "https://", "https://x:0", "https://x:y", "https://[x"])
def test_it_is_asked_by_https_only(url: str) -> None:
    with pytest.raises(StartupError, match="must be https://host:port") as caught:
        api_address(settings(f"--kubernetes-api-url={url}"), {})
    assert caught.value.causes == (url,)


def test_what_was_given_is_reported_without_user_information() -> None:
    found = settings(
        "--quic-insecure", "--listen-addr=127.0.0.1:1", "--remote-stargate-url=https://user:word@far,https://b"
    )
    assert found.given() == {
        "listen_addr": "127.0.0.1:1",
        "target_namespace": "nvcf",
        "grpc_pylon_dial_addr": "http://door:50071",
        "remote_stargate_url": "https://***@far,https://b",
        "quic_insecure": True,
    }
