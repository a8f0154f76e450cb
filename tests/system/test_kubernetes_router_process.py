"""`stargate-k8s-router` as a process: what it says, its exit codes, and its end."""

import json
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import grpc
import h2.connection
import h2.events
import h2.settings
import pytest

from certs import make_self_signed
from kubernetes_router.file_limit import files_needed
from kubernetes_router.grpc_listener import WATCH
from support.kubernetes_api import TOKEN, ApiInThread
from support.kubernetes_objects import endpoint, endpoint_slice
from support.processes import LoggedProcess, Stack
from support.waiting import wait_until
from tunnel_protocol.control import stargate_pb2 as pb
from tunnel_protocol.control import stargate_pb2_grpc

PROGRAM = (sys.executable, "-m", "kubernetes_router")
REQUIRED = ("--target-namespace=nvcf", "--grpc-pylon-dial-addr=http://door:50071")
LOCAL = (
    "--listen-addr=127.0.0.1:0",
    "--reverse-tunnel-listen-addr=127.0.0.1:0",
    "--health-listen-addr=127.0.0.1:0",
)
NOWHERE = "--kubernetes-api-url=https://127.0.0.1:9"
SERVICE = "routers"


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    found = Stack(tmp_path)
    yield found
    found.stop()


@pytest.fixture
def api(tmp_path: Path) -> Iterator[ApiInThread]:
    found = ApiInThread(tmp_path)
    yield found
    found.stop()


def started(stack: Stack, *extra: str) -> tuple[LoggedProcess, dict[str, str]]:
    ports = stack.folder / "ports.json"
    process = stack.start("door", (*PROGRAM, *REQUIRED, *LOCAL, f"--ports-file={ports}", *extra))
    wait_until(lambda: ports.exists() or not process.running, 20, "the ports file is there")
    assert process.running, process.log()
    return process, json.loads(ports.read_text())


def status(address: str, path: str) -> int:
    try:
        with urllib.request.urlopen(f"http://{address}{path}", timeout=5) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def ended(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*PROGRAM, *arguments], capture_output=True, text=True, timeout=30, check=False)


def test_it_is_alive_at_once_and_ready_only_with_a_router(stack: Stack) -> None:
    process, ports = started(stack, NOWHERE)
    assert status(ports["health"], "/livez") == 200
    assert status(ports["health"], "/readyz") == 503
    process.signal(signal.SIGTERM)
    assert process.wait() == 0
    assert "stargate-k8s-router stopped cleanly" in process.log()


def test_it_may_open_as_many_files_as_tunnels_need_though_its_soft_limit_is_small(stack: Stack) -> None:
    ports = stack.folder / "ports.json"
    command = ["sh", "-c", 'ulimit -Sn 256 && exec "$@"', "sh", *PROGRAM, *REQUIRED, *LOCAL, NOWHERE]
    process = stack.start("door", [*command, f"--ports-file={ports}"])
    wait_until(lambda: ports.exists() or not process.running, 20, "the ports file is there")
    limits = Path(f"/proc/{json.loads(ports.read_text())['pid']}/limits").read_text()
    (files,) = [line.split() for line in limits.splitlines() if line.startswith("Max open files")]
    assert int(files[3]) == min(files_needed(), int(files[4]))


def test_it_is_ready_when_the_service_has_a_router(stack: Stack, api: ApiInThread) -> None:
    process, ports = started(stack, *api.api.options, f"--target-service-name={SERVICE}")
    assert status(ports["health"], "/readyz") == 503
    api.call(api.api.apply(endpoint_slice("a", endpoint("router-0", "10.0.0.1"), service=SERVICE)))
    wait_until(lambda: status(ports["health"], "/readyz") == 200, 10, "it is ready")
    api.call(api.api.delete("a"))
    wait_until(lambda: status(ports["health"], "/readyz") == 503, 10, "it is not ready any more")
    assert TOKEN not in process.log()


def test_outside_of_a_cluster_the_start_fails() -> None:
    found = ended(*REQUIRED)
    assert found.returncode == 1
    assert "--kubernetes-api-url gives the address of the Kubernetes API" in found.stderr


def test_usage_errors_end_with_two() -> None:
    found = ended("--target-namespace=n")
    assert found.returncode == 2
    assert found.stderr.startswith(
        "error: the following required arguments were not provided:\n  --grpc-pylon-dial-addr"
    )
    assert "Usage: stargate-k8s-router [OPTIONS]" in found.stderr


def test_a_failed_start_ends_with_one() -> None:
    found = ended("--target-namespace=n", "--grpc-pylon-dial-addr=door:50071", *LOCAL)
    assert found.returncode == 1
    assert found.stderr == (
        "Error: --grpc-pylon-dial-addr must be an explicit http:// or https:// URI\n\nCaused by:\n    door:50071: it has no scheme\n"
    )


def test_a_port_in_use_is_named(stack: Stack) -> None:
    _, ports = started(stack, NOWHERE)
    found = ended(*REQUIRED, *LOCAL[:2], NOWHERE, f"--health-listen-addr={ports['health']}")
    assert found.returncode == 1
    assert found.stderr.startswith(f"Error: failed to bind health listener on {ports['health']}\n")


def test_help_teaches_and_ends_with_zero() -> None:
    found = ended("--help")
    assert found.returncode == 0
    assert "--kubernetes-api-url <URL>" in found.stdout


def test_the_version_is_that_of_the_build() -> None:
    found = ended("--version")
    assert (found.returncode, found.stdout.partition(" ")[0]) == (0, "stargate-k8s-router")


@pytest.fixture
def stuck(stack: Stack, api: ApiInThread, request: pytest.FixtureRequest) -> Iterator[LoggedProcess]:
    """A process with a watch whose worker takes nothing; the parameter is its limit for the shutdown."""
    api.call(api.api.apply(endpoint_slice("a", endpoint("router-0", "10.0.0.1"), service=SERVICE)))
    extra = [*api.api.options, f"--target-service-name={SERVICE}", f"--shutdown-drain-timeout-ms={request.param}"]
    process, ports = started(stack, *extra)
    wait_until(lambda: status(ports["health"], "/readyz") == 200, 10, "it is ready")
    host, port = ports["grpc"].split(":")
    with socket.create_connection((host, int(port)), timeout=10) as worker:
        client = h2.connection.H2Connection()
        client.initiate_connection()
        client.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 0})
        names = {":method": "POST", ":scheme": "http", ":path": WATCH.decode(), ":authority": "x"}
        client.send_headers(1, [*names.items(), ("content-type", "application/grpc")], end_stream=True)
        worker.sendall(client.data_to_send())
        events: list[object] = []
        while not any(isinstance(event, h2.events.ResponseReceived) for event in events):
            events += client.receive_data(worker.recv(65_536))
        yield process


@pytest.mark.parametrize("stuck", [500], indirect=True)
def test_a_shutdown_that_takes_too_long_fails(stuck: LoggedProcess) -> None:
    stuck.signal(signal.SIGTERM)
    assert stuck.wait() == 1
    assert "Error: graceful shutdown timed out after 500 ms" in stuck.log()


@pytest.mark.parametrize("stuck", [20_000], indirect=True)
def test_a_second_signal_ends_it_at_once(stuck: LoggedProcess) -> None:
    stuck.signal(signal.SIGTERM)
    wait_until(lambda: "beginning graceful shutdown" in stuck.log(), 10, "it shuts down")
    stuck.signal(signal.SIGINT)
    assert stuck.wait() == 1
    assert "Error: received second SIGINT during graceful shutdown" in stuck.log()


CHART_1_12 = [
    "--listen-addr=0.0.0.0:50071",
    "--reverse-tunnel-listen-addr=0.0.0.0:50072",
    "--health-listen-addr=0.0.0.0:8080",
    "--target-namespace=nvcf",
    "--target-service-name=llm-request-router",
    "--advertised-hostname-template={pod_name}.llm-request-router-headless.nvcf.svc.cluster.local",
    "--advertised-grpc-port=50071",
    "--grpc-pylon-dial-addr=http://llm-request-router-backend-router.nvcf.svc.cluster.local:50071",
    "--watch-heartbeat-ms=5000",
    "--grpc-port-name=grpc",
    "--quic-port-name=quic",
    "--tunnel-protocol=raw-quic",
    "--quic-insecure",
]
CHART_1_13 = [one.replace("=llm-request-router", "=llm-request-router-headless") for one in CHART_1_12]
LATER = [*CHART_1_13, "--shutdown-drain-timeout-ms=30000"]
REMOTE = [*LATER, "--remote-stargate-url=http://far:50071", "--allow-insecure-remote-watch-http"]
REPLACED = {
    "--listen-addr": "--listen-addr=127.0.0.1:0",
    "--reverse-tunnel-listen-addr": "--reverse-tunnel-listen-addr=127.0.0.1:0",
    "--health-listen-addr": "--health-listen-addr=127.0.0.1:0",
}
"""Arguments of charts with ports of this host, so that tests can run side by side."""


@pytest.mark.parametrize(
    ("chart", "tls"),
    [(CHART_1_12, False), (CHART_1_13, False), (LATER, False), (LATER, True), (REMOTE, False)],
    ids=["1.12.1", "1.12.2 and 1.13", "with a drain time", "with certificates", "with remote regions"],
)
def test_it_starts_with_what_charts_render_and_publishes_the_pods(
    stack: Stack, api: ApiInThread, chart: list[str], tls: bool
) -> None:
    arguments = [REPLACED.get(one.partition("=")[0], one) for one in chart]
    if tls:
        identity = make_self_signed(["*.llm-request-router-headless.nvcf.svc.cluster.local"], days=1)
        for name, content in (("tls.crt", identity.cert_pem), ("tls.key", identity.key_pem)):
            (stack.folder / name).write_bytes(content)
        arguments += [f"--tls-cert-path={stack.folder}/tls.crt", f"--tls-key-path={stack.folder}/tls.key"]
    service = next(one.partition("=")[2] for one in chart if one.startswith("--target-service-name"))
    pod = endpoint("llm-request-router-7d9f-abcde", "10.0.0.1")
    api.call(api.api.apply(endpoint_slice("a", pod, service=service)))
    ports_file = stack.folder / "ports.json"
    process = stack.start("door", (*PROGRAM, *arguments, *api.api.options, f"--ports-file={ports_file}"))
    wait_until(lambda: ports_file.exists() or not process.running, 20, "the ports file is there")
    assert process.running, process.log()
    ports = json.loads(ports_file.read_text())
    wait_until(lambda: status(ports["health"], "/readyz") == 200, 10, "it is ready")
    with grpc.insecure_channel(ports["grpc"], options=[("grpc.enable_http_proxy", 0)]) as channel:
        stub = stargate_pb2_grpc.StargateControlPlaneStub(channel)  # type: ignore[no-untyped-call]  # generated
        published = next(stub.WatchStargates(pb.WatchStargatesRequest(), timeout=10))
    (router,) = published.stargates
    assert router.advertise_addr == (
        "llm-request-router-7d9f-abcde.llm-request-router-headless.nvcf.svc.cluster.local:50071"
    )
    assert router.grpc_pylon_dial_addr == ("http://llm-request-router-backend-router.nvcf.svc.cluster.local:50071")
    assert list(published.watch_stargate_urls) == (["http://far:50071"] if chart is REMOTE else [])
    process.signal(signal.SIGTERM)
    assert process.wait() == 0
