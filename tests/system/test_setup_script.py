"""`make setup` fails readably when something is missing, has a checkout compiled, and does nothing when nothing changed."""

import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ("bash", "cat", "cksum", "tr", "dirname", "touch", "rm", "tail")


def tree(tmp_path: Path) -> tuple[Path, Path]:
    """A checkout without .venv, and a PATH that has the basic tools but no Python."""
    project, tools = tmp_path / "project", tmp_path / "bin"
    (project / "scripts").mkdir(parents=True)
    shutil.copy(ROOT / "scripts/setup", project / "scripts/setup")
    shutil.copytree(ROOT / "requirements", project / "requirements")
    tools.mkdir()
    for tool in TOOLS:
        found = shutil.which(tool)
        assert found is not None
        (tools / tool).symlink_to(found)
    return project, tools


def setup(project: Path, tools: Path, *words: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [project / "scripts/setup", *words],
        env={"PATH": str(tools), **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=20,
    )


def stub(path: Path, script: str) -> None:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def test_a_missing_python_is_told_with_what_to_do(tmp_path: Path) -> None:
    project, tools = tree(tmp_path)
    ended = setup(project, tools)
    assert ended.returncode == 1
    assert "needs Python 3.11 or newer" in ended.stderr


def test_a_python_that_is_too_old_does_not_count(tmp_path: Path) -> None:
    project, tools = tree(tmp_path)
    stub(tools / "python3", "exit 1")
    assert "needs Python 3.11 or newer" in setup(project, tools).stderr


def test_a_python_without_venv_is_told(tmp_path: Path) -> None:
    project, tools = tree(tmp_path)
    stub(tools / "python3", 'case "$*" in *ensurepip*) exit 1;; *version_info*) exit 0;; *) echo Python 3.12.0;; esac')
    ended = setup(project, tools)
    assert ended.returncode == 1
    assert "Python 3.12.0 has no venv module" in ended.stderr


def test_failed_installation_shows_the_end_of_its_log(tmp_path: Path) -> None:
    project, tools = tree(tmp_path)
    (project / ".venv/bin").mkdir(parents=True)
    stub(project / ".venv/bin/python", 'case "$*" in *pip*) echo "no network today"; exit 1;; *) exit 0;; esac')
    ended = setup(project, tools)
    assert ended.returncode == 1
    assert "could not be installed" in ended.stderr
    assert "no network today" in ended.stderr


def test_nothing_happens_when_nothing_changed(tmp_path: Path) -> None:
    project, tools = tree(tmp_path)
    (project / ".venv/bin").mkdir(parents=True)
    stub(project / ".venv/bin/python", "exit 0")
    first = setup(project, tools)
    stub(project / ".venv/bin/python", 'case "$*" in *pip*) exit 1;; *) exit 0;; esac')
    second = setup(project, tools)
    assert (first.returncode, second.returncode, second.stderr) == (0, 0, "")
    (project / "requirements/run.txt").write_text("changed==1\n")
    assert setup(project, tools).returncode == 1


COMPILES = 'case "$*" in *compile_checkout*) echo "$*" >>.venv/compilations; echo "cc1: no" >&2; exit {};; esac'


def compilations(project: Path) -> list[str]:
    asked = project / ".venv/compilations"
    return asked.read_text().splitlines() if asked.exists() else []


def with_compile(tmp_path: Path, python: str) -> tuple[Path, Path]:
    """A checkout whose .venv has what is pinned."""
    project, tools = tree(tmp_path)
    shutil.copy(ROOT / "scripts/compile", project / "scripts/compile")
    (project / ".venv/bin").mkdir(parents=True)
    stub(project / ".venv/bin/python", python)
    return project, tools


def test_each_time_it_is_seen_to_that_the_checkout_was_compiled_once(tmp_path: Path) -> None:
    project, tools = with_compile(tmp_path, COMPILES.format(0))
    assert [setup(project, tools).returncode for _ in range(2)] == [0, 0]
    assert compilations(project) == ["scripts/compile_checkout.py --once"] * 2


def test_the_packages_are_not_compiled_if_that_is_not_wished(tmp_path: Path) -> None:
    project, tools = with_compile(tmp_path, COMPILES.format(0))
    ended = setup(project, tools, LLM_ROUTER_COMPILE="0")
    assert (ended.returncode, compilations(project)) == (0, [])


def test_failed_compilation_is_an_error_of_the_setup(tmp_path: Path) -> None:
    project, tools = with_compile(tmp_path, COMPILES.format(1))
    ended = setup(project, tools)
    assert (ended.returncode, ended.stderr.splitlines()[-1]) == (1, "cc1: no")
    assert setup(project, tools).returncode == 1


def test_asked_for_by_itself_it_is_not_that_of_the_setup(tmp_path: Path) -> None:
    project, tools = with_compile(tmp_path, COMPILES.format(0))
    subprocess.run([project / "scripts/compile"], env={"PATH": str(tools)}, check=True, timeout=20, capture_output=True)
    assert compilations(project) == ["scripts/compile_checkout.py"]


INSTALLS = 'case "$*" in *pip*) echo "$*" >>.venv/installs;; *compile_checkout*) echo asked >>.venv/compilations;; esac; exit 0'


def installed(project: Path) -> list[str]:
    words = [line.split() for line in (project / ".venv/installs").read_text().splitlines()]
    return [line[line.index("-r") + 1] for line in words]


def test_for_running_only_what_runs_is_installed_and_nothing_compiled(tmp_path: Path) -> None:
    project, tools = with_compile(tmp_path, INSTALLS)
    assert setup(project, tools, "run").returncode == 0
    assert (installed(project), len(compilations(project))) == (["requirements/run.txt"], 0)
    assert setup(project, tools, "run").stderr == ""
    assert setup(project, tools).returncode == 0
    assert (installed(project), len(compilations(project))) == (["requirements/run.txt", "requirements/dev.txt"], 1)
    assert setup(project, tools, "run").stderr == ""
    assert len(installed(project)) == 2
