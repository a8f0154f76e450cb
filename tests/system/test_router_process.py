"""The router as operators meet it: a process with a command line, ports, logs, signals and an exit code."""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llm_request_router.testing import Process, ProcessEndedError, System
from router.config.settings import OPTIONS
from tunnel_protocol.compilation import AS_WRITTEN_BECAUSE

REQUIRED = ["--stargate-id=r", "--advertise-addr=127.0.0.1:0", "--stargate-discovery-dns-name=localhost"]
LOCAL = [
    *REQUIRED,
    "--listen-addr=127.0.0.1:0",
    "--model-discovery-listen-addr=127.0.0.1:0",
    "--http-listen-addr=127.0.0.1:0",
    "--metrics-port=0",
    "--disable-dns-discovery",
]
REVERSE = ["--backend-connectivity=reverse", "--reverse-tunnel-listen-addr=127.0.0.1:0"]


_OPTION_VARIABLES = {option.env for option in OPTIONS}
_ENVIRONMENT = {name: value for name, value in os.environ.items() if name not in _OPTION_VARIABLES}


def run(*arguments: str, timeout_s: float = 20, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "router", *arguments],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
        stdin=subprocess.DEVNULL,
        env={**_ENVIRONMENT, **environment},
        cwd=Path(__file__).resolve().parents[2],
    )


def test_usage_errors_end_with_two_and_say_nothing_on_stdout() -> None:
    ended = run("--nope")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith("error: unexpected argument '--nope' found")


def test_help_ends_with_zero() -> None:
    ended = run("--help")
    assert ended.returncode == 0
    assert "--reverse-tunnel-listen-addr" in ended.stdout


def test_the_version_is_printed_and_is_that_of_the_first_log_line() -> None:
    ended = run("--version", STARGATE_BUILD_VERSION="0.18.0-7")
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "stargate 0.18.0-7\n", "")
    plain = run("-V")
    assert plain.returncode == 0
    assert re.fullmatch(r"stargate \S+\n", plain.stdout)
    ended = run(*LOCAL, "--metrics-prefix=9-", STARGATE_BUILD_VERSION="0.18.0-7")
    assert 'starting stargate version="0.18.0-7"' in ended.stdout.splitlines()[0]


def test_options_of_other_releases_are_ignored_with_one_warning_or_end_the_start() -> None:
    ended = run(*LOCAL, "--metrics-prefix=9-", "--allow-open-worker-auth", STARGATE_ROUTING_RESERVATION_TTL_MAX_MS="5")
    warnings = [line for line in ended.stdout.splitlines() if " WARN " in line]
    assert len(warnings) == 1
    assert 'ignored options="--routing-reservation-ttl-max-ms, --allow-open-worker-auth"' in warnings[0]
    ended = run("--config-file=/etc/stargate/stargate.toml")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith("error: the argument '--config-file <PATH>' is not supported yet: ")


@pytest.mark.parametrize(
    ("arguments", "texts"),
    [
        ([*REVERSE[:1]], ["Error: --backend-connectivity=reverse requires --reverse-tunnel-listen-addr"]),
        (
            [],
            [
                "Error: failed to initialize quic proxy",
                "Caused by:\n    TLS cert required when --quic-insecure is not set",
            ],
        ),
        (
            [*REVERSE],
            [
                "Error: failed to initialize quic proxy",
                "Caused by:\n    TLS cert required when --quic-insecure is not set",
            ],
        ),
        (["--quic-insecure", "--metrics-prefix=9-"], ["Error: failed to create prometheus metrics registry"]),
        (
            [*REVERSE, "--tls-cert-path=/none/c", "--tls-key-path=/none/k"],
            ["Error: load initial reverse listener TLS server identity", "Caused by:", "/none/c"],
        ),
        (
            ["--tls-cert-path=/none/c"],
            ["Error: No such file or directory (os error 2)", "Option: --tls-cert-path=/none/c"],
        ),
        (
            ["--quic-insecure", "--lb-config-path=/none/lb.json"],
            ["Error: failed to read lb config file: /none/lb.json", "Option: --lb-config-path=/none/lb.json"],
        ),
        (
            ["--quic-insecure", "--backend-connectivity=reverse", "--reverse-tunnel-listen-addr=nope"],
            ["Error: invalid socket address syntax", "Option: --reverse-tunnel-listen-addr=nope"],
        ),
        (
            [
                "--quic-insecure",
                "--worker-auth-endpoint=http://127.0.0.1:9",
                "--worker-auth-connect-timeout-ms=100",
            ],
            [
                "Error: failed to connect to worker auth endpoint",
                "no answer within 100 ms",
                "Options: --worker-auth-endpoint=http://127.0.0.1:9 --worker-auth-connect-timeout-ms=100",
            ],
        ),
    ],
)
def test_a_failed_start_ends_with_one_and_says_why(arguments: list[str], texts: list[str]) -> None:
    ended = run(*LOCAL, *arguments)
    assert ended.returncode == 1
    for text in texts:
        assert text in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("option", "text"),
    [
        ("--quic-qlog-dir", "failed to write to qlog directory"),
        ("--quic-keylog-path", "failed to open key log"),
        ("--ports-file", "failed to write ports file:"),
    ],
)
@pytest.mark.parametrize("mode", [[], REVERSE], ids=["direct", "reverse"])
def test_a_place_that_cannot_be_written_is_told_as_what_it_is(
    option: str, text: str, mode: list[str], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    path = f"{tmp_path}/file/x"
    ended = run(*LOCAL, *mode, "--quic-insecure", f"{option}={path}")
    assert ended.returncode == 1
    expected = f"Error: {text} {path}\n\nCaused by:\n    Not a directory (os error 20)\n\nOption: {option}={path}\n"
    assert ended.stderr == expected


@pytest.mark.parametrize(
    ("option", "kind", "text"),
    [
        ("--listen-addr", socket.SOCK_STREAM, "failed to bind gRPC listener"),
        ("--model-discovery-listen-addr", socket.SOCK_STREAM, "failed to bind model-discovery listener"),
        ("--http-listen-addr", socket.SOCK_STREAM, "failed to bind HTTP listener"),
        ("--metrics-port", socket.SOCK_STREAM, "failed to bind metrics listener"),
        ("--reverse-tunnel-listen-addr", socket.SOCK_DGRAM, "failed to bind reverse tunnel listener"),
    ],
)
def test_a_port_in_use_fails_the_start_with_the_listeners_name(option: str, kind: socket.SocketKind, text: str) -> None:
    with socket.socket(socket.AF_INET, kind) as busy:
        busy.bind(("0.0.0.0" if option == "--metrics-port" else "127.0.0.1", 0))
        if kind is socket.SOCK_STREAM:
            busy.listen()
        port = busy.getsockname()[1]
        given = f"{option}={port}" if option == "--metrics-port" else f"{option}=127.0.0.1:{port}"
        others = [word for word in [*LOCAL, *REVERSE] if not word.startswith(f"{option}=")]
        ended = run(*others, "--quic-insecure", given)
    assert ended.returncode == 1
    assert ended.stderr == (
        f"Error: {text}\n\nCaused by:\n    Address already in use (os error 98)\n\nOption: {given}\n"
    )


def test_the_ports_file_tells_where_everything_listens(llm_router: System) -> None:
    document = json.loads((llm_router.directory / "router.ports.json").read_text())
    assert document["pid"] == llm_router.router.pid
    assert llm_router.request("GET", "/readyz").status == 200
    assert llm_router.request("GET", "/healthz").status == 200
    config = json.loads(llm_router.request("GET", "/debug/state").body)["config"]
    assert config["http_listen_addr"] == document["http"]
    assert config["grpc_listen_addr"] == document["grpc"] == config["advertise_addr"]
    assert config["model_discovery_listen_addr"] == document["model_discovery"]
    assert config["metrics_listen_addr"] == document["metrics"]


def test_the_first_log_lines_tell_the_build_and_the_settings_given(llm_router: System) -> None:
    first, second = llm_router.router.log().splitlines()[:2]
    assert " INFO starting stargate version=" in first
    assert "commit_short_sha=" in first
    assert "stargate_id=test-router" in first
    assert len(first) < 400
    assert " INFO settings other than the defaults stargate_id=test-router advertise_addr=127.0.0.1:0" in second
    assert "quic_request_timeout_ms" not in second
    assert "setting name=" not in llm_router.router.log()


def test_all_settings_are_told_at_debug() -> None:
    ended = run(*LOCAL, "--metrics-prefix=9-", RUST_LOG="debug")
    told = [line for line in ended.stdout.splitlines() if "DEBUG setting name=" in line]
    assert len(told) == len(OPTIONS)
    assert any('name="quic_request_timeout_ms" value=300000' in line for line in told)


def test_ready_is_told_once_with_all_bound_addresses(llm_router: System) -> None:
    line = llm_router.router.until_logged(" INFO ready ")
    ports = llm_router.ports
    for name, address in ports._asdict().items():
        assert address is None or f'{name}="{address}"' in line  # that for OpenAI clients is off
    assert llm_router.request("GET", "/readyz").status == 200
    assert llm_router.router.log().count(" INFO ready ") == 1


@pytest.mark.parametrize(
    ("start", "code", "text"),
    [
        ("None", 1, "TypeError"),
        ("lambda *_: os.abort()", -signal.SIGABRT, "Fatal Python error: Aborted"),
    ],
)
def test_a_bug_at_start_and_a_crash_of_the_interpreter_leave_their_traceback_on_standard_error(
    start: str, code: int, text: str
) -> None:
    program = f"""
import os, resource
import router.__main__, router.process.lifecycle
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
router.process.lifecycle.start = {start}
router.__main__.main()
"""
    ended = subprocess.run(
        [sys.executable, "-c", program, *LOCAL, "--quic-insecure"],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
        env=_ENVIRONMENT,
        cwd=Path(__file__).resolve().parents[2],
    )
    assert ended.returncode == code
    assert text in ended.stderr
    assert "most recent call" in ended.stderr
    assert "lifecycle.py" in ended.stderr


def test_router_and_worker_tell_first_which_form_runs_and_why(llm_router: System) -> None:
    told = [
        llm_router.router.log().splitlines()[0].lower(),
        llm_router.add_worker("tiny-model").process.log().splitlines()[0].lower(),
    ]
    assert "starting worker" in told[1]
    for line in told:
        assert f"compiled={str(AS_WRITTEN_BECAUSE is None).lower()}" in line
        assert ("as_written_because=" in line) == (AS_WRITTEN_BECAUSE is not None)
        assert AS_WRITTEN_BECAUSE is None or AS_WRITTEN_BECAUSE.lower() in line


def test_the_policy_is_told_bare_so_that_pods_can_be_compared(llm_router: System) -> None:
    llm_router.router.until_logged("load balancer config loaded default_lb=power-of-n model_overrides=0")


def test_a_fresh_metrics_page_has_the_series_that_exist_from_the_start(llm_router: System) -> None:
    shown = set(llm_router.metrics(additional=False))
    expressions = {name for name in shown if name.startswith("stargate_routing_expression")}
    assert len(expressions) == 18 + 1
    assert shown - expressions == {
        "stargate_proxy_ambiguous_delivery_total",
        'stargate_requests_total{inference_server_id="",model="",routing_key="",status="404"}',
        'stargate_tls_reloads_total{material_type="server_identity",result="rejected"}',
        'stargate_tls_reloads_total{material_type="server_identity",result="success"}',
    }


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_idle_router_ends_with_zero_at_once(llm_router: System, number: signal.Signals) -> None:
    idle = http.client.HTTPConnection(llm_router.ports.http, timeout=5)
    idle.request("GET", "/healthz")
    idle.getresponse().read()
    began = time.monotonic()
    llm_router.router.send(number)
    assert llm_router.router.wait() == 0
    assert time.monotonic() - began < 3
    assert idle.sock is not None
    assert idle.sock.recv(1) == b""
    idle.close()
    log = llm_router.router.log()
    for text in (
        f'received termination signal, beginning graceful shutdown signal="{number.name}"',
        "Entering draining mode",
        "graceful shutdown complete",
        "stargate stopped cleanly",
    ):
        assert text in log
    assert "ERROR" not in log


def test_a_signal_during_a_slow_start_is_a_clean_end(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "router", *LOCAL, "--quic-insecure", "--worker-auth-endpoint=http://127.0.0.1:9"]
    process = Process("router", command, tmp_path, {})
    try:
        process.until_logged("starting stargate")
        process.send(signal.SIGTERM)
        assert process.wait() == 0
    finally:
        process.kill()


def test_a_router_that_does_not_start_is_told_with_its_log() -> None:
    with pytest.raises(ProcessEndedError, match="invalid proxy retry budget header"):
        System.start("--proxy-retry-budget-header=a b")
