"""`stargate-k8s-router` as a process: what it says, its exit codes, and its end."""

import json
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.kubernetes_api import TOKEN, ApiInThread
from support.kubernetes_objects import endpoint, endpoint_slice
from support.processes import LoggedProcess, Stack
from support.waiting import wait_until

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
    assert found.stderr == "Error: --grpc-pylon-dial-addr must be an explicit http:// or https:// URI\n"


def test_a_port_in_use_is_named(stack: Stack) -> None:
    _, ports = started(stack, NOWHERE)
    found = ended(*REQUIRED, *LOCAL[:2], NOWHERE, f"--health-listen-addr={ports['health']}")
    assert found.returncode == 1
    assert found.stderr.startswith(f"Error: failed to bind health listener on {ports['health']}\n")


def test_help_teaches_and_ends_with_zero() -> None:
    found = ended("--help")
    assert found.returncode == 0
    assert "--kubernetes-api-url <URL>" in found.stdout
