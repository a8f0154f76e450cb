"""The command line keeps the contract of docs/operations.md, "Command line"."""

import re
from dataclasses import fields
from itertools import groupby

import pytest

from router.config.cli import HelpRequested, UsageError, VersionRequested, help_text, parse, settings_or_exit
from router.config.settings import OPTIONS, Settings

REQUIRED = ["--stargate-id=r", "--advertise-addr=127.0.0.1:50071", "--stargate-discovery-dns-name=routers.local"]


def settings(*arguments: str, env: dict[str, str] | None = None) -> Settings:
    return parse([*REQUIRED, *arguments], env or {})


def refusal(*arguments: str, env: dict[str, str] | None = None) -> str:
    with pytest.raises(UsageError) as caught:
        settings(*arguments, env=env)
    return caught.value.message


def test_defaults_are_those_of_the_reference() -> None:
    found = settings()
    assert found.listen_addr == "0.0.0.0:50071"
    assert found.model_discovery_listen_addr == "0.0.0.0:50073"
    assert found.http_listen_addr == "0.0.0.0:8000"
    assert found.metrics_port == 9090
    assert (found.dns_poll_ms, found.dns_resolver_ttl_ms, found.watch_heartbeat_ms) == (1000, 1000, 5000)
    assert found.registration_update_idle_timeout_ms == 60_000
    assert found.registration_update_max_idle_timeout_ms == 300_000
    assert (found.proxy_max_connect_retries, found.proxy_max_request_retries) == (2, 2)
    assert found.proxy_max_replay_body_bytes == 64 << 20
    assert found.proxy_require_pylon_retry_signal is True
    assert found.proxy_retry_budget_header == "x-stargate-max-wait-ms"
    assert found.tunnel_protocol == "raw-quic"
    assert found.backend_connectivity == "direct"
    assert found.direct_quic_connections == 1
    assert found.quic_insecure is False
    assert found.metrics_prefix == "stargate_"
    assert found.otel_service_name == "stargate"
    assert found.remote_stargate_url == ()
    assert found.grpc_pylon_dial_addr is None


def test_the_arguments_of_the_default_chart_are_accepted() -> None:
    found = parse(
        [
            "--stargate-id=pod-0",
            "--listen-addr=0.0.0.0:50071",
            "--http-listen-addr=0.0.0.0:8000",
            "--advertise-addr=10.1.2.3:50071",
            "--stargate-discovery-dns-name=routers-headless.ns.svc.cluster.local",
            "--pod-name=pod-0",
            "--pod-namespace=ns",
            "--advertised-hostname-template={pod_name}.routers-headless.{namespace}.svc.cluster.local",
            "--shutdown-drain-timeout-ms=30000",
            "--quic-connect-timeout-ms=2000",
            "--quic-request-timeout-ms=30000",
            "--metrics-port=9090",
            "--backend-connectivity=reverse",
            "--reverse-tunnel-listen-addr=0.0.0.0:50072",
            "--reverse-tunnel-pylon-dial-addr=10.1.2.3:50072",
            "--reverse-tunnel-connect-timeout-ms=10000",
            "--worker-auth-endpoint=http://api.ns.svc.cluster.local:9090",
            "--secrets-path=/vault/secrets/secrets.json",
            "--secrets-json-path=nvcfApiToken",
            "--quic-insecure",
        ],
        {"POD_NAME": "pod-0", "POD_NAMESPACE": "ns", "POD_IP": "10.1.2.3"},
    )
    assert found.reverse
    assert found.quic_insecure
    assert found.advertised_host == "pod-0.routers-headless.ns.svc.cluster.local"


def test_a_value_may_follow_after_a_space() -> None:
    assert settings("--lb-config-path", "/etc/lb.json").lb_config_path == "/etc/lb.json"


def test_an_empty_value_after_the_equals_sign_is_a_value() -> None:
    assert settings("--lb-config-path=").lb_config_path == ""


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--nope"], "unexpected argument '--nope' found"),
        (["--version=1"], "unexpected argument '--version' found"),
        (["hello"], "unexpected argument 'hello' found"),
        (["--"], "unexpected argument '--' found"),
        (["-x"], "unexpected argument '-x' found"),
        (["--shutdown-drain=1"], "unexpected argument '--shutdown-drain' found"),
        (["--stargate-id=b"], "the argument '--stargate-id <ID>' cannot be used multiple times"),
        (["--quic-insecure", "--quic-insecure"], "the argument '--quic-insecure' cannot be used multiple times"),
        (["--quic-insecure=true"], "unexpected value 'true' for '--quic-insecure' found; no more were expected"),
        (["--lb-config-path"], "a value is required for '--lb-config-path <PATH>' but none was supplied"),
        (["--lb-config-path", "--quic-insecure"], "a value is required for '--lb-config-path <PATH>'"),
        (["--quic-request-timeout-ms", "-1"], "a value is required for '--quic-request-timeout-ms <MS>'"),
    ],
)
def test_what_is_not_understood_is_refused(arguments: list[str], expected: str) -> None:
    assert refusal(*arguments).startswith(expected)


def test_missing_required_options_are_all_named() -> None:
    with pytest.raises(UsageError) as caught:
        parse(["--stargate-id=x"], {})
    assert "--advertise-addr" in caught.value.message
    assert "--stargate-discovery-dns-name" in caught.value.message
    assert "--stargate-id" not in caught.value.message


@pytest.mark.parametrize(
    "value", ["x", "", "-1", "1.5", "1_000", " 5", "5 ", "18446744073709551616", "1e3", "0x10", "٣"]
)
def test_integers_are_digits_and_nothing_else(value: str) -> None:
    assert refusal(f"--quic-request-timeout-ms={value}").startswith(
        f"invalid value '{value}' for '--quic-request-timeout-ms <MS>': "
    )


@pytest.mark.parametrize(
    ("value", "expected"), [("0", 0), ("+5", 5), ("007", 7), ("18446744073709551615", 2**64 - 1), ("1e+06", 1_000_000)]
)
def test_integers_may_have_a_plus_sign_or_helms_exponent(value: str, expected: int) -> None:
    assert settings(f"--quic-request-timeout-ms={value}").quic_request_timeout_ms == expected


@pytest.mark.parametrize(
    ("flag", "value", "reason"),
    [
        ("--dns-poll-ms", "0", "value must be greater than 0"),
        ("--dns-poll-ms", "x", "invalid millisecond value: invalid digit found in string"),
        ("--direct-quic-connections", "0", "value must be greater than 0"),
        ("--direct-quic-connections", "x", "invalid count: invalid digit found in string"),
        ("--backend-connectivity", "edge", "unsupported backend connectivity 'edge', expected 'direct' or 'reverse'"),
        (
            *("--tunnel-protocol", "RAW-QUIC"),
            "unsupported tunnel protocol 'RAW-QUIC', expected 'raw-quic', 'http3', or 'webtransport'",
        ),
        ("--advertise-addr", "localhost:80", "invalid socket address syntax"),
        ("--metrics-port", "65536", "65536 is not in 0..=65535"),
        ("--quic-stream-window-bytes", "1023", "1023 is not in 1024..=1073741824"),
        ("--proxy-max-connect-retries", "4294967296", "number too large to fit in target type"),
    ],
)
def test_refused_values_are_told_with_flag_and_reason(flag: str, value: str, reason: str) -> None:
    base = [word for word in REQUIRED if not word.startswith(flag)]
    with pytest.raises(UsageError) as caught:
        parse([*base, f"{flag}={value}"], {})
    assert re.fullmatch(
        rf"invalid value '{re.escape(value)}' for '{flag} <[A-Z:]+>': {re.escape(reason)}", caught.value.message
    )


def test_booleans_are_true_or_false() -> None:
    assert settings("--proxy-require-pylon-retry-signal=false").proxy_require_pylon_retry_signal is False
    assert refusal("--proxy-require-pylon-retry-signal=yes").startswith(
        "invalid value 'yes' for '--proxy-require-pylon-retry-signal <BOOL>'\n"
    )
    assert "a value is required for" in refusal("--proxy-require-pylon-retry-signal=")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("raw-quic", "raw-quic"),
        ("h3", "http3"),
        ("http3", "http3"),
        ("wt", "webtransport"),
        ("web-transport", "webtransport"),
    ],
)
def test_tunnel_protocols_have_aliases(given: str, expected: str) -> None:
    assert settings(f"--tunnel-protocol={given}").tunnel_protocol == expected


def test_the_command_line_wins_over_the_environment() -> None:
    env = {"STARGATE_PROXY_MAX_REQUEST_RETRIES": "x"}
    assert settings("--proxy-max-request-retries=1", env=env).proxy_max_request_retries == 1
    assert "--proxy-max-request-retries" in refusal(env=env)


@pytest.mark.parametrize("value", ["1", "", "TRUE", "yes"])
def test_switches_in_the_environment_are_true_or_false(value: str) -> None:
    assert "--quic-insecure" in refusal(env={"STARGATE_QUIC_INSECURE": value})
    assert settings(env={"STARGATE_QUIC_INSECURE": "true"}).quic_insecure
    assert not settings(env={"STARGATE_QUIC_INSECURE": "false"}).quic_insecure


def test_an_empty_environment_variable_is_set() -> None:
    assert settings(env={"SECRETS_PATH": ""}).secrets_path == ""
    assert "--proxy-max-connect-retries" in refusal(env={"STARGATE_PROXY_MAX_CONNECT_RETRIES": ""})


def test_otel_service_name_of_the_environment_is_not_ours() -> None:
    assert settings(env={"OTEL_SERVICE_NAME": "other"}).otel_service_name == "stargate"


def test_remote_urls_repeat_and_split_at_commas() -> None:
    found = settings("--remote-stargate-url=a:1,b:2", "--remote-stargate-url", "c:3")
    assert found.remote_stargate_url == ("a:1", "b:2", "c:3")
    assert settings(env={"STARGATE_REMOTE_WATCH_URLS": "a:1,b:2"}).remote_stargate_url == ("a:1", "b:2")


def test_headers_that_no_worker_gets_repeat_and_are_field_names() -> None:
    assert settings().proxy_drop_request_headers == ()
    given = settings("--proxy-drop-request-headers=X-A, x-b", "--proxy-drop-request-headers=x-c")
    assert given.proxy_drop_request_headers == ("x-a", "x-b", "x-c")
    for value, reason in (
        ("", "'' is not the name"),
        ("x-a,b c", "'b c' is not the name"),
        ("X-Model", "workers need x-model"),
    ):
        with pytest.raises(UsageError, match=reason):
            settings(f"--proxy-drop-request-headers={value}")


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_goes_to_stdout_and_ends_with_zero(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        settings_or_exit([flag], {}, str)
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert all(option.shown in shown for option in OPTIONS)


@pytest.mark.parametrize("flag", ["--version", "-V"])
def test_the_version_goes_to_stdout_and_ends_with_zero(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        settings_or_exit([flag], {}, lambda: "1.2.3")
    assert ended.value.code == 0
    assert capsys.readouterr().out == "stargate 1.2.3\n"


@pytest.mark.parametrize("flag", ["--version", "-V"])
def test_the_older_release_line_has_no_version_option(flag: str) -> None:
    for arguments, env in (["--compat=0.11", flag], {}), ([flag], {"STARGATE_COMPAT": "0.11"}):
        with pytest.raises(UsageError, match=f"unexpected argument '{flag}' found"):
            parse(arguments, env)
    with pytest.raises(VersionRequested):
        parse(["--compat=0.18", flag], {"STARGATE_COMPAT": "0.11"})


def test_an_error_left_of_help_is_told_first() -> None:
    with pytest.raises(UsageError):
        parse(["--nope", "--help"], {})
    with pytest.raises(HelpRequested):
        parse(["--help", "--nope"], {})


def test_usage_errors_go_to_stderr_and_end_with_two(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        settings_or_exit(["--nope"], {}, str)
    assert ended.value.code == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("error: unexpected argument '--nope' found\n")


def test_help_marks_our_additions_so_that_the_known_options_can_be_told_apart() -> None:
    marked = set(re.findall(r"^  \+ (--[a-z0-9-]+)", help_text(), re.MULTILINE))
    assert marked == {option.flag for option in OPTIONS if option.added}
    later = set(re.findall(r"^  \* (--[a-z0-9-]+)", help_text(), re.MULTILINE))
    assert later == {option.flag for option in OPTIONS if option.later}
    assert not marked & later


def test_every_field_is_an_option_named_after_its_flag() -> None:
    assert sorted(field.name for field in fields(Settings)) == sorted(option.name for option in OPTIONS)
    assert all(option.flag == "--" + option.name.replace("_", "-") for option in OPTIONS)
    assert set(settings().reported()) == {option.name for option in OPTIONS}


def test_a_default_shown_in_the_help_gives_the_default_when_it_is_given() -> None:
    shown = [option for option in OPTIONS if option.default_shown]
    assert settings(*(f"{option.flag}={option.default_shown}" for option in shown)) == settings()


def test_sections_of_the_help_hold_together() -> None:
    sections = [section for section, _ in groupby(option.section for option in OPTIONS)]
    assert None not in sections
    assert len(sections) == len(set(sections))


def test_the_release_line_is_one_of_two() -> None:
    assert settings().compat == "0.18"
    assert settings("--compat", "0.11").as_of_0_18 is False
    assert settings(env={"STARGATE_COMPAT": "0.11"}).compat == "0.11"
    assert "unsupported release line '0.12', expected '0.11' or '0.18'" in refusal("--compat=0.12")


@pytest.mark.parametrize(("release", "expected"), [("0.11", 30_000), ("0.18", 300_000)])
def test_the_limit_to_the_response_head_is_that_of_the_release_line(release: str, expected: int) -> None:
    assert settings(f"--compat={release}").head_timeout_ms == expected
    assert settings(f"--compat={release}", "--quic-request-timeout-ms=5").head_timeout_ms == 5


def test_options_of_other_releases_are_accepted_and_named_as_ignored() -> None:
    assert settings().ignored_options == []
    assert settings("--routing-reservation-ttl-min-ms=1", "--allow-open-worker-auth").ignored_options == [
        "--routing-reservation-ttl-min-ms",
        "--allow-open-worker-auth",
    ]
    env = {
        "STARGATE_ROUTING_RESERVATION_TTL_MIN_MS": "1",
        "STARGATE_ROUTING_RESERVATION_TTL_MAX_MS": "1000",
        "STARGATE_ALLOW_OPEN_WORKER_AUTH": "true",
    }
    assert len(settings(env=env).ignored_options) == 3
    assert settings(env={"STARGATE_ALLOW_OPEN_WORKER_AUTH": "false"}).ignored_options == []
    assert "--routing-reservation-ttl-max-ms" in refusal("--routing-reservation-ttl-max-ms=x")


@pytest.mark.parametrize("option", ["--worker-auth-file", "--config-file"])
def test_options_that_must_not_be_ignored_are_told_as_not_supported_yet(option: str) -> None:
    variable = f"STARGATE_{option.removeprefix('--').replace('-', '_').upper()}"
    with pytest.raises(UsageError) as caught:
        parse([f"{option}=/etc/x"], {})  # a chart may pass nothing else
    assert caught.value.message.startswith(f"the argument '{option} <PATH>' is not supported yet: ")
    assert "\n" not in caught.value.message
    told = refusal(env={variable: "/etc/x"})
    assert told.startswith(f"the argument '{option} <PATH>' is not supported yet: ")
    assert told.endswith(f"it comes from the environment variable {variable}")


def test_a_value_of_the_environment_is_refused_with_the_name_of_its_variable() -> None:
    told = refusal(env={"STARGATE_READINESS_WARMUP_MS": "soon"})
    assert told.startswith("invalid value 'soon' for '--readiness-warmup-ms <MS>': ")
    assert told.endswith("it comes from the environment variable STARGATE_READINESS_WARMUP_MS")
