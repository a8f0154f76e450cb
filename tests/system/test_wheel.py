"""Wheel and sdist hold what an installation needs, and the wheel works from an environment of its own, outside the tree."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from router.telemetry import build
from tunnel_protocol import compiled_form

ROOT = Path(__file__).resolve().parents[2]
SITE = next(path for path in sys.path if path.endswith("site-packages"))


def run(*words: str | Path, cwd: Path, timeout_s: float = 100) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment.pop("LLM_ROUTER_PURE_PYTHON", None)
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
    assert {"certs", "tunnel_protocol", "router", "kubernetes_router", "stargate_client", "llm_request_router"} <= tops
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
    form = "import tunnel_protocol.compilation as c; print(c.description())"
    assert run(python, "-c", form, cwd=tmp_path) == "as written (installed without compiled modules)\n"
    assert "usage" in run(tmp_path / "env/bin/stargate", "--help", cwd=tmp_path).lower()
    assert "usage: stargate-client" in run(tmp_path / "env/bin/stargate-client", "--help", cwd=tmp_path)
    shown = run(tmp_path / "env/bin/stargate-k8s-router", "--help", cwd=tmp_path)
    assert "Usage: stargate-k8s-router [OPTIONS]" in shown


def test_an_installation_runs_the_compiled_modules_that_came_with_it(built: Path, tmp_path: Path) -> None:
    """They are laid out as a compiled wheel has them; to compile one takes minutes."""
    form = compiled_form.form_of(ROOT, compiled_form.manifest(ROOT))
    if not form.is_dir():
        pytest.skip("no compiled form of these sources; make compile makes one")
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")  # noqa: S202 - our own
    shutil.copytree(form, tmp_path / "site", dirs_exist_ok=True)
    code = (
        f"import sys; sys.path[:0] = [{str(tmp_path / 'site')!r}]\n"
        "import router.process.app, tunnel_protocol.compilation as c\n"
        "print(c.description(), router.process.app.__file__, sys.modules['router.proxy.attempt'].__spec__.origin)"
    )
    told, app, attempt = run(sys.executable, "-c", code, cwd=tmp_path).split()
    assert told == "compiled"
    assert app == str(tmp_path / "site/router/process/app.py")
    assert attempt == str(tmp_path / f"site/router/proxy/attempt{compiled_form.SUFFIX}")
