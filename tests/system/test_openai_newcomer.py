"""Somebody new: the README's lines from the installation to the first answer, in an empty folder, with the installed programs."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from llm_request_router.testing import Process
from support.processes import free_ports

ROOT = Path(__file__).resolve().parents[2]
SITE = next(path for path in sys.path if path.endswith("site-packages"))
README = (ROOT / "README.md").read_text(encoding="utf-8")
PORTS = ("9000", "50071", "50072", "8080")
"""Those of the page; the test has others in their place."""


def commands(page: str, mark: str) -> list[str]:
    """The commands, one each, of the shell lines that have `mark` in them."""
    (lines,) = (block for block in re.findall(r"```sh\n(.*?)```", page, re.DOTALL) if mark in block)
    return lines.replace("\\\n", " ").splitlines()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with what a checkout of these sources has, and nothing that was made from them."""
    checkout = tmp_path / "checkout"
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    ).stdout
    for name in filter(None, listed.decode().split("\0")):
        if (ROOT / name).is_file() and not name.startswith(("tests/", "docs/")):
            (checkout / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, checkout / name)
    return checkout


@pytest.mark.timeout(180)
def test_from_the_installation_to_the_first_answer(folder: Path, tmp_path: Path) -> None:
    make_environment, install, router, worker = commands(README, "env/bin/pip install")
    (code,) = re.findall(r"```python\n(from openai.*?)```", README, re.DOTALL)
    text = {"router": router, "worker": worker, "code": code}
    ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
    for told, free in ports.items():
        text = {name: re.sub(rf":{told}\b", f":{free}", found) for name, found in text.items()}

    # What pip would load from an index is lent by this environment: the test needs no network.
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PYTEST_"))}
    offline = ["--no-index", "--no-deps", "--no-build-isolation"]

    def run(words: list[str]) -> None:
        done = subprocess.run(
            words,
            cwd=folder,
            env={**environment, "LLM_ROUTER_COMPILE": "0", "PYTHONPATH": SITE},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    assert make_environment.startswith("python3 ")
    run([sys.executable, *make_environment.split()[1:]])
    (site,) = (folder / "env/lib").glob("python*/site-packages")
    (site / "dependencies.pth").write_text(f"{SITE}\n")
    run([*install.split(), *offline])

    # From here on the checkout is not there: only what was installed is.
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "env").symlink_to(folder / "env")
    for path in folder.iterdir():
        if path.name != "env":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    models, http = free_ports(2)
    others = f"--model-discovery-listen-addr 127.0.0.1:{models} --http-listen-addr 127.0.0.1:{http} --metrics-port 0"
    listen = re.findall(r"--advertise-addr (\S+)", text["router"])[0]
    words = {
        "engine": f"env/bin/python -m stargate_client.mock_engine --model my-model --port {ports['9000']}",
        "router": text["router"].removesuffix(" &") + f" --listen-addr {listen} {others}",
        "worker": text["worker"].removesuffix(" &"),
    }
    processes: list[Process] = []
    try:
        for name, line in words.items():
            start = ["bash", "-c", f"cd {empty} && exec {line}"]
            processes.append(Process(name, start, tmp_path, environment))
        router_process = processes[1]

        def answer() -> str | None:
            done = subprocess.run(
                ["env/bin/python", "-c", text["code"]],
                cwd=empty,
                env=environment,
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
            return done.stdout if done.returncode == 0 else None

        printed = router_process.until(answer, "the lines of the README give an answer", timeout_s=60)
        assert printed.startswith("Hello , how can I help you today")
    finally:
        for process in reversed(processes):
            process.stop()
