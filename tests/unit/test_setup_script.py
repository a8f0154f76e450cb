"""`make setup` fails readably when something is missing, and does nothing when nothing changed."""

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


def setup(project: Path, tools: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [project / "scripts/setup"], env={"PATH": str(tools)}, capture_output=True, text=True, check=False, timeout=20
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
