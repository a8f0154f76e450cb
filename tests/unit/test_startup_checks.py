"""Start-up checks: texts, order, and options whose feature is missing."""

import pytest

from router.config.cli import parse
from router.config.settings import Settings
from router.config.startup_checks import (
    StartupError,
    causes_of,
    check_options,
    check_worker_auth,
    listen_address,
    outbound_trust,
    retry_budget_header,
)


def settings(*arguments: str) -> Settings:
    base = ["--stargate-id=r", "--advertise-addr=127.0.0.1:50071", "--stargate-discovery-dns-name=x"]
    return parse([*base, *arguments], {})


REVERSE = ("--backend-connectivity=reverse", "--reverse-tunnel-listen-addr=127.0.0.1:0")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--reverse-tunnel-listen-addr=127.0.0.1:1"],
            "--reverse-tunnel-listen-addr requires --backend-connectivity=reverse",
        ),
        (
            ["--reverse-tunnel-pylon-dial-addr=x:1"],
            "--reverse-tunnel-pylon-dial-addr requires --backend-connectivity=reverse",
        ),
        (["--backend-connectivity=reverse"], "--backend-connectivity=reverse requires --reverse-tunnel-listen-addr"),
        (
            ["--enable-dev-peer-forwarding", "--disable-dns-discovery"],
            "--enable-dev-peer-forwarding cannot be combined with --disable-dns-discovery",
        ),
        (["--enable-dev-peer-forwarding"], "--enable-dev-peer-forwarding requires both --pod-name and --pod-namespace"),
        (["--proxy-retry-budget-header=a b"], "invalid proxy retry budget header: a b"),
        ([*REVERSE, "--tls-cert-path=c"], "--tls-key-path is required with --tls-cert-path"),
        ([*REVERSE, "--tls-key-path=k"], "--tls-cert-path is required with --tls-key-path"),
        (["--grpc-tls-cert-path=c"], "--grpc-tls-key-path is required with --grpc-tls-cert-path"),
    ],
)
def test_options_that_do_not_fit_together_are_told(arguments: list[str], message: str) -> None:
    with pytest.raises(StartupError) as caught:
        check_options(settings(*arguments))
    assert caught.value.message == message


@pytest.mark.parametrize(
    ("arguments", "flag"),
    [
        (["--enable-dev-peer-forwarding", "--pod-name=p", "--pod-namespace=n"], "--enable-dev-peer-forwarding"),
    ],
)
def test_a_feature_that_is_missing_is_never_silently_ignored(arguments: list[str], flag: str) -> None:
    with pytest.raises(StartupError) as caught:
        check_options(settings(*arguments))
    assert flag in caught.value.message
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    "arguments",
    [
        ["--tls-key-path=/nonexistent"],
        ["--pod-name=only"],
        ["--secrets-path=/nonexistent"],
        ["--oauth2-provider-host=http://x"],
        ["--proxy-retry-budget-header= "],
        ["--quic-request-timeout-ms=0"],
        ["--otel-endpoint= "],
        ["--otel-endpoint=http://collector:4317"],
    ],
)
def test_what_the_reference_accepts_without_complaint_is_accepted(arguments: list[str]) -> None:
    check_options(settings(*arguments))
    check_worker_auth(settings(*arguments))


def test_client_credentials_without_the_secrets_file_are_refused() -> None:
    with pytest.raises(StartupError, match="OAUTH2_PROVIDER_HOST is set but SECRETS_PATH is not"):
        check_worker_auth(settings("--worker-auth-endpoint=http://127.0.0.1:9", "--oauth2-provider-host=http://x"))


def test_verification_without_certificates_stops_the_start_in_both_modes() -> None:
    for arguments in ([], REVERSE):
        with pytest.raises(StartupError) as caught:
            outbound_trust(settings(*arguments), None)
        assert caught.value.report() == (
            "Error: failed to initialize quic proxy\n\nCaused by:\n    TLS cert required when --quic-insecure is not set"
            "\n\nOptions: --tls-cert-path --quic-insecure"
        )


@pytest.mark.parametrize(("given", "expected"), [("X-Budget", b"x-budget"), ("", None), ("  ", None), (" a ", b"a")])
def test_the_retry_budget_header_is_a_lower_case_name_or_off(given: str, expected: bytes | None) -> None:
    assert retry_budget_header(settings(f"--proxy-retry-budget-header={given}")) == expected


@pytest.mark.parametrize("address", ["localhost:80", "nope", "1.2.3.4", ":80", "1.2.3.4:99999", "[1.2.3.4]:5"])
def test_listen_addresses_are_never_names(address: str) -> None:
    with pytest.raises(StartupError, match=r"^invalid socket address syntax$") as caught:
        listen_address(settings(f"--http-listen-addr={address}"), "http_listen_addr")
    assert caught.value.options == (f"--http-listen-addr={address}",)


@pytest.mark.parametrize(
    ("address", "shown"), [("1.2.3.4:0", "1.2.3.4:0"), ("[::1]:5", "[::1]:5"), ("fd00::1:50071", "[fd00::1]:50071")]
)
def test_ipv6_is_accepted_with_and_as_a_last_resort_without_brackets(address: str, shown: str) -> None:
    assert str(listen_address(settings(f"--listen-addr={address}"), "listen_addr")) == shown


def test_options_that_led_to_a_failure_are_named_at_the_end() -> None:
    one = StartupError("a", "b", options=["--x=1"])
    assert one.report() == "Error: a\n\nCaused by:\n    b\n\nOption: --x=1"
    assert StartupError("a", options=["--x=1", "--y=2"]).report() == "Error: a\n\nOptions: --x=1 --y=2"


def test_options_are_shown_as_on_the_command_line_and_without_passwords() -> None:
    found = settings("--worker-auth-endpoint=http://u:secret@h:1", "--remote-stargate-url=https://a,https://b")
    names = ("worker_auth_endpoint", "remote_stargate_url", "quic_insecure", "advertise_addr", "lb_config_path")
    assert found.shown(*names) == (
        "--advertise-addr=127.0.0.1:50071",
        "--remote-stargate-url=https://a,https://b",
        "--worker-auth-endpoint=http://***@h:1",
        "--quic-insecure=false",
    )
    assert found.reported()["worker_auth_endpoint"] == "http://***@h:1"
    assert "lb_config_path" not in found.given()
    assert found.given()["remote_stargate_url"] == "https://a,https://b"


def test_several_causes_are_numbered() -> None:
    assert StartupError("a", "b", "c").report() == "Error: a\n\nCaused by:\n    0: b\n    1: c"


def test_causes_follow_the_exception_chain() -> None:
    error = ValueError("config")
    error.__cause__ = OSError("disk")
    assert causes_of(error) == ("config", "disk")


def test_a_bundle_without_certificates_stops_the_start_unless_nothing_is_verified() -> None:
    with pytest.raises(StartupError) as caught:
        outbound_trust(settings("--tls-cert-path=x"), b"")
    assert caught.value.causes == ("TLS trust bundle contains no certificates",)
    assert outbound_trust(settings("--tls-cert-path=x", "--quic-insecure"), b"") is None
