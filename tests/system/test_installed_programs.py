"""What an installation offers: console scripts that become the program, and a plug-in that keeps out of its user's way."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from llm_request_router import programs
from llm_request_router.testing import Process

ROOT = Path(__file__).resolve().parents[2]

PROJECT = {
    "router.py": 'NAME = "the router module of the project under test"\n',
    "stargate_client.py": "raise AssertionError('the wrong module was started')\n",
    "test_x.py": """
import router

def test_the_fixture_starts_our_router_and_worker(llm_router):
    assert llm_router.request("GET", "/healthz").status == 200
    llm_router.add_worker("tiny-model")
    assert llm_router.chat("tiny-model").status == 200

def test_the_module_of_the_project_is_the_one_imported():
    assert router.NAME == "the router module of the project under test"
""",
}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for name, text in PROJECT.items():
        (tmp_path / name).write_text(text)
    return tmp_path


@pytest.mark.parametrize("first", [False, True], ids=["in the working directory", "first in PYTHONPATH"])
def test_a_project_with_a_module_called_router_can_use_the_plugin(project: Path, first: bool) -> None:
    path = os.pathsep.join([str(project), str(ROOT)] if first else [str(ROOT)])
    words = [
        sys.executable,
        "-P",
        "-m",
        "pytest",
        "-q",
        "-p",
        "llm_request_router.pytest_plugin",
        "-p",
        "no:cacheprovider",
    ]
    done = subprocess.run(
        [*words, "test_x.py"],
        cwd=project,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert "2 passed" in done.stdout, done.stdout


def test_the_plugin_imports_nothing_of_the_program() -> None:
    code = "import sys, llm_request_router.pytest_plugin; print(*sorted(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    tops = {name.partition(".")[0] for name in done.stdout.split()}
    assert tops.isdisjoint({"router", "certs", "tunnel_protocol", "kubernetes_router", "stargate_client", "benchmarks"})


@pytest.mark.parametrize(
    ("script", "told"),
    [
        ("router", "usage: stargate "),
        ("worker", "usage: stargate-client"),
        ("kubernetes_router", "usage: stargate-k8s-router "),
        ("top", "usage: python -m router top "),
    ],
)
def test_a_console_script_becomes_the_program(tmp_path: Path, script: str, told: str) -> None:
    start = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); from llm_request_router import programs; programs.{script}()"
    )
    (tmp_path / "router.py").write_text("raise AssertionError('the wrong module was started')\n")
    (tmp_path / "stargate_client.py").write_text("raise AssertionError('the wrong module was started')\n")
    (tmp_path / "kubernetes_router.py").write_text("raise AssertionError('the wrong module was started')\n")
    words = [sys.executable, "-c", start, "--help"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, told in done.stdout.lower()) == (0, True), done


def test_the_console_script_keeps_its_process_id_and_ends_as_the_router_does(tmp_path: Path) -> None:
    ports = tmp_path / "ports.json"
    start = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from llm_request_router import programs; programs.router()"
    options = ["--stargate-id", "r", "--listen-addr", "127.0.0.1:0", "--advertise-addr", "127.0.0.1:0"]
    options += [
        "--model-discovery-listen-addr",
        "127.0.0.1:0",
        "--http-listen-addr",
        "127.0.0.1:0",
        "--metrics-port",
        "0",
    ]
    options += [
        "--quic-insecure",
        "--stargate-discovery-dns-name",
        "localhost",
        "--disable-dns-discovery",
        "--ports-file",
        str(ports),
    ]
    process = Process("stargate", [sys.executable, "-c", start, *options], tmp_path, {})
    process.until(lambda: ports.exists() or None, "it told its ports")
    assert b"\0-m\0router\0" in Path(f"/proc/{process.pid}/cmdline").read_bytes()
    process.send(signal.SIGTERM)
    assert process.wait() == 0


def test_an_ordinary_installation_needs_nothing_in_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "ROOT", Path("/site"))
    monkeypatch.setattr(programs.site, "getsitepackages", lambda: ["/site"])
    assert programs.environment({}) == {}
    assert programs.environment({"PYTHONPATH": "/mine"}) == {"PYTHONPATH": f"/site{os.pathsep}/mine"}
