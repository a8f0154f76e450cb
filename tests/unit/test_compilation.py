"""Compiled or as written: one form for the whole process, never an outdated one, and a switch."""

import importlib
import os
import subprocess
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest

from tunnel_protocol import compilation
from tunnel_protocol.compilation import AsWritten, outdated, why_as_written

ROOT = Path(__file__).resolve().parents[2]
SUFFIX = EXTENSION_SUFFIXES[0]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A package with one module that was compiled a minute ago and one that was not."""
    package = tmp_path / "tunnel_protocol"
    package.mkdir()
    (tmp_path / "setup.py").touch()
    for name, age_s in (("wire.py", 120), (f"wire{SUFFIX}", 60), ("other.py", 0)):
        path = package / name
        path.write_text("")
        at = path.stat().st_mtime - age_s
        os.utime(path, (at, at))
    return tmp_path


def touch(path: Path) -> None:
    path.write_text("# changed\n")


def test_what_was_compiled_is_used(tree: Path) -> None:
    assert why_as_written(tree, {}) is None
    assert why_as_written(tree, {"LLM_ROUTER_PURE_PYTHON": "0"}) is None


def test_the_switch_asks_for_the_program_as_written(tree: Path) -> None:
    assert why_as_written(tree, {"LLM_ROUTER_PURE_PYTHON": "1"}) == "LLM_ROUTER_PURE_PYTHON is set"


def test_a_source_that_changed_afterwards_outdates_everything(tree: Path) -> None:
    touch(tree / "tunnel_protocol/wire.py")
    assert why_as_written(tree, {}) == "wire.py changed after compilation"


def test_what_was_installed_came_together(tree: Path) -> None:
    touch(tree / "tunnel_protocol/wire.py")
    (tree / "setup.py").unlink()
    assert why_as_written(tree, {}) is None


def test_so_does_a_changed_source_of_the_other_compiler(tree: Path) -> None:
    touch(tree / "tunnel_protocol/wire.pyx")
    assert outdated([tree / f"tunnel_protocol/wire{SUFFIX}"]) == ["wire.pyx"]


def test_a_source_that_is_not_compiled_may_change(tree: Path) -> None:
    touch(tree / "tunnel_protocol/other.py")
    assert why_as_written(tree, {}) is None


def test_nothing_compiled_is_told(tmp_path: Path) -> None:
    assert why_as_written(tmp_path, {}) == "not compiled"


def test_as_written_means_sources_only_and_leaves_others_alone(tree: Path) -> None:
    finder = AsWritten()
    path = [str(tree / "tunnel_protocol")]
    spec = finder.find_spec("tunnel_protocol.wire", path)
    assert spec is not None
    assert spec.origin == str(tree / "tunnel_protocol/wire.py")
    assert finder.find_spec("aioquic.quic", path) is None
    assert finder.find_spec("tunnel_protocol", None) is None
    with pytest.raises(ModuleNotFoundError, match=r"tunnel_protocol\.speedups is not used"):
        finder.find_spec("tunnel_protocol.speedups", path)


@pytest.mark.parametrize("wish", ["1", "0"])
def test_a_process_runs_in_one_form(wish: str) -> None:
    """No module of a compiled package comes from the other form, whatever is imported first."""
    script = (
        "import sys, router.process.app, tunnel_protocol.compilation as c\n"
        "forms = {m.__file__.endswith('.py') for n, m in sys.modules.items()\n"
        "         if n.startswith(('router.proxy.', 'tunnel_protocol.quic.stream'))}\n"
        "print(forms == {c.AS_WRITTEN_BECAUSE is not None})"
    )
    environment = {**os.environ, "LLM_ROUTER_PURE_PYTHON": wish}
    ended = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert ended.stdout == "True\n"


def test_this_process_knows_its_form() -> None:
    compiled = not importlib.import_module("tunnel_protocol.quic.ranges").__file__.endswith(".py")
    assert compiled == (compilation.AS_WRITTEN_BECAUSE is None)
