"""Wheel and sdist hold what an installation needs, and the wheel works from an environment of its own, outside the tree."""

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from router.process import build

ROOT = Path(__file__).resolve().parents[2]
SITE = next(path for path in sys.path if path.endswith("site-packages"))


def run(*words: str | Path, cwd: Path, timeout_s: float = 100) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["LLM_ROUTER_COMPILE"] = "0"
    done = subprocess.run(
        words, cwd=cwd, env=environment, capture_output=True, text=True, timeout=timeout_s, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the wheel and the sdist of what git tracks, or would."""
    tree, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("dist")
    listed = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=ROOT).split("\0")
    for name in filter(None, listed):
        if (ROOT / name).is_file() and not name.startswith(("tests/", "docs/")):
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            (tree / name).write_bytes((ROOT / name).read_bytes())
    for kind in ("sdist", "wheel"):
        code = f"import sys; from setuptools import build_meta; build_meta.build_{kind}(sys.argv[1])"
        run(sys.executable, "-c", code, str(out), cwd=tree)
    return out


def test_the_wheel_has_the_programs_and_not_the_benchmarks(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    assert wheel.name.startswith(f"llm_request_router-{build.VERSION}-")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    tops = {name.partition("/")[0] for name in names if not name.startswith("llm_request_router-")}
    assert {"certs", "tunnel_protocol", "router", "stargate_client", "llm_request_router"} <= tops
    assert tops.isdisjoint({"benchmarks", "examples", "tests", "primary_standby.py"})
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert "router/py.typed" in names


def test_the_sdist_can_be_built_from(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"pyproject.toml", "setup.py", "LICENSE", "README.md", "tunnel_protocol/capnp_speedups.pyx"} <= names


def test_the_installed_wheel_serves_a_request(built: Path, tmp_path: Path) -> None:
    (wheel,) = built.glob("*.whl")
    run(sys.executable, "-m", "venv", "--without-pip", "env", cwd=tmp_path)
    python = tmp_path / "env/bin/python"
    (site,) = (tmp_path / "env/lib").glob("python*/site-packages")
    pip = (sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index")
    run(*pip, str(wheel), cwd=tmp_path)
    (site / "dependencies.pth").write_text(f"{SITE}\n")
    (tmp_path / "test_x.py").write_text(
        "def test_a_worker_answers(llm_router):\n"
        "    llm_router.add_worker('tiny-model')\n"
        "    assert llm_router.chat('tiny-model').status == 200\n"
    )
    assert "1 passed" in run(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_x.py", cwd=tmp_path)
    assert "usage" in run(tmp_path / "env/bin/stargate", "--help", cwd=tmp_path).lower()
    assert "usage: stargate-client" in run(tmp_path / "env/bin/stargate-client", "--help", cwd=tmp_path)
