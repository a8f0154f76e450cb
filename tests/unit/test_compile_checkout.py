"""`scripts/compile`: a compiled form is made whole or not at all, found again, and there are few of them."""

import fcntl
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tunnel_protocol import compiled_form
from tunnel_protocol.compilation import decide
from tunnel_protocol.compiled_form import SUFFIX

ROOT = Path(__file__).resolve().parents[2]


def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("compile_checkout", ROOT / "scripts/compile_checkout.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    before = list(sys.path)
    spec.loader.exec_module(module)
    sys.path[:] = before
    return module


SCRIPT = script()


class Compiler:
    """Stands for mypyc, Cython and the C compiler: makes the modules it is told, writes a log, and counts."""

    def __init__(self, *modules: str, status: int = 0) -> None:
        self.modules = modules
        self.status = status
        self.ran = 0

    def __call__(self, into: Path, log: Path) -> int:
        self.ran += 1
        log.write_text("cc1: no\n")
        for module in self.modules:
            path = into / f"{module}{SUFFIX}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        return self.status


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A checkout that was not compiled yet."""
    for name in ("setup.py", "tunnel_protocol/wire.py", "router/proxy/attempt.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("# first\n")
    return tmp_path


@pytest.fixture
def compiler() -> Compiler:
    return Compiler("tunnel_protocol/wire", "tunnel_protocol_compiled__mypyc")


def make(tree: Path, compiler: Compiler, wish: str = "1", *, once: bool = False) -> int:
    status = SCRIPT.compile_checkout(tree, wish, compiler, once=once)
    assert isinstance(status, int)
    assert left_over(tree) == []
    return status


def left_over(tree: Path) -> list[str]:
    return [path.name for path in (tree / "build/compiled").glob(".aside*")]


def why(tree: Path) -> str | None:
    return decide(tree, {})[1]


def change(tree: Path, text: str) -> None:
    (tree / "tunnel_protocol/wire.py").write_text(text)


# Making one -------------------------------------------------------------------------------------------------------------


def test_the_form_of_these_sources_is_made_and_used(tree: Path, compiler: Compiler) -> None:
    assert why(tree) is not None
    assert make(tree, compiler) == 0
    assert why(tree) is None
    (form,) = compiled_form.forms(tree)
    assert compiled_form.modules_of(form).keys() == {"tunnel_protocol.wire", "tunnel_protocol_compiled__mypyc"}
    assert (form / compiled_form.MANIFEST).read_text() == compiled_form.manifest(tree)


def test_after_a_switch_forth_and_back_it_is_found_again(tree: Path, compiler: Compiler) -> None:
    make(tree, compiler)
    change(tree, "# second\n")
    assert why(tree) is not None
    make(tree, compiler)
    assert (why(tree), compiler.ran) == (None, 2)
    change(tree, "# first\n")
    assert (why(tree), compiler.ran) == (None, 2)
    assert make(tree, compiler) == 0
    assert compiler.ran == 2


@pytest.mark.parametrize("wish", ["1", "require"])
def test_a_failure_leaves_nothing_and_shows_the_end_of_the_log(
    tree: Path, capsys: pytest.CaptureFixture[str], wish: str
) -> None:
    assert make(tree, Compiler("tunnel_protocol/wire", status=1), wish) == 1
    assert "compilation failed; the last lines of build/compile.log:\ncc1: no\n" in capsys.readouterr().err
    assert compiled_form.forms(tree) == []


@pytest.mark.parametrize(("wish", "status", "told"), [("1", 0, "the program runs as written"), ("require", 1, "error")])
def test_without_a_c_compiler_the_program_runs_as_written_unless_compiled_is_required(
    tree: Path, capsys: pytest.CaptureFixture[str], wish: str, status: int, told: str
) -> None:
    assert make(tree, Compiler(), wish) == status
    err = capsys.readouterr().err
    assert told in err
    assert "cc1: no" in err
    assert compiled_form.forms(tree) == []


def test_sources_that_change_meanwhile_have_no_form_made_of_both(
    tree: Path, compiler: Compiler, capsys: pytest.CaptureFixture[str]
) -> None:
    def build(into: Path, log: Path) -> int:
        change(tree, "# second\n")
        return compiler(into, log)

    assert SCRIPT.compile_checkout(tree, "1", build, once=False) == 1
    assert "sources changed while they were compiled" in capsys.readouterr().err
    assert (compiled_form.forms(tree), left_over(tree)) == ([], [])


def test_an_interrupted_one_leaves_nothing_that_is_used(tree: Path, compiler: Compiler) -> None:
    def interrupted(into: Path, log: Path) -> int:
        compiler(into, log)
        assert why(tree) is not None  # half-built
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        SCRIPT.compile_checkout(tree, "1", interrupted, once=False)
    assert (compiled_form.forms(tree), left_over(tree)) == ([], [])


def test_what_a_killed_one_left_is_removed(tree: Path, compiler: Compiler) -> None:
    compiler(tree / "build/compiled/.aside-new", tree / "log")
    assert make(tree, compiler) == 0
    assert why(tree) is None


def test_what_earlier_versions_left_beside_the_sources_is_removed(tree: Path, compiler: Compiler) -> None:
    old = [
        tree / f"{name}{SUFFIX}" for name in ("tunnel_protocol/wire", "router/proxy/attempt", "router_compiled__mypyc")
    ]
    others = [tree / name for name in (f"router/other{SUFFIX}.txt", f"mine{SUFFIX}", f"build/lib/router/x{SUFFIX}")]
    for path in [*old, *others]:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    make(tree, compiler)
    assert [path for path in old if path.exists()] == []
    assert [path for path in others if not path.exists()] == []


def test_few_are_kept_and_the_last_used_among_them(tree: Path, compiler: Compiler) -> None:
    (tree / "build/compiled").mkdir(parents=True)
    for number in range(SCRIPT.KEPT + 2):
        change(tree, f"# {number}\n")
        make(tree, compiler)
        for form in compiled_form.forms(tree):  # time passes
            at = form.stat().st_mtime - 60
            os.utime(form, (at, at))
        change(tree, "# 0\n")
        make(tree, compiler)
    assert len(compiled_form.forms(tree)) == SCRIPT.KEPT
    assert compiler.ran == SCRIPT.KEPT + 2
    assert why(tree) is None


def test_there_is_one_at_a_time(tree: Path, compiler: Compiler, capsys: pytest.CaptureFixture[str]) -> None:
    def build(into: Path, log: Path) -> int:
        with (tree / "build/compiled/.lock").open("w") as lock, pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return compiler(into, log)

    assert SCRIPT.compile_checkout(tree, "1", build, once=False) == 0


HOLDS_THE_LOCK = """
import os, sys
lock = os.stat("build/compiled/.lock")
def is_lock(descriptor):
    try:
        return os.path.samestat(os.fstat(descriptor), lock)
    except OSError:
        return False
sys.exit(0 if any(map(is_lock, range(3, 100))) else 3)
"""


def test_compilers_that_outlive_a_killed_one_still_keep_the_next_away(tree: Path) -> None:
    (tree / "setup.py").write_text(HOLDS_THE_LOCK)
    assert SCRIPT.compile_checkout(tree, "1", SCRIPT.build_by_setuptools(tree), once=False) == 0


# `make setup` -----------------------------------------------------------------------------------------------------------


def test_the_setup_compiles_a_new_checkout_and_says_nothing_when_nothing_changed(
    tree: Path, compiler: Compiler, capsys: pytest.CaptureFixture[str]
) -> None:
    make(tree, compiler, once=True)
    assert "compiled: build/compiled/" in capsys.readouterr().err
    assert make(tree, compiler, once=True) == 0
    assert (compiler.ran, capsys.readouterr().err) == (1, "")


def test_the_setup_says_that_changed_sources_run_as_written_and_compiles_them_if_that_is_required(
    tree: Path, compiler: Compiler, capsys: pytest.CaptureFixture[str]
) -> None:
    make(tree, compiler, once=True)
    change(tree, "# second\n")
    assert make(tree, compiler, once=True) == 0
    assert "runs as written, there is no compiled form of these sources; make compile" in capsys.readouterr().err
    assert compiler.ran == 1
    assert make(tree, compiler, "require", once=True) == 0
    assert (compiler.ran, why(tree)) == (2, None)


def test_the_setup_tries_once_without_a_c_compiler_and_again_after_a_failure(tree: Path) -> None:
    without, failing = Compiler(), Compiler(status=1)
    assert [make(tree, failing, once=True) for _ in range(2)] == [1, 1]
    assert [make(tree, without, once=True) for _ in range(2)] == [0, 0]
    assert (failing.ran, without.ran) == (2, 1)


@pytest.mark.parametrize("once", [True, False])
def test_nothing_is_compiled_if_that_is_not_wished(tree: Path, compiler: Compiler, once: bool) -> None:
    assert make(tree, compiler, "0", once=once) == 0
    assert compiler.ran == 0
    assert not (tree / "build").exists()


# The command ------------------------------------------------------------------------------------------------------------


def test_the_build_goes_into_the_directory_it_is_given_and_its_output_into_the_log(tree: Path) -> None:
    (tree / "setup.py").write_text("import sys; print(sys.argv[1:]); sys.exit(3)\n")
    log = tree / "log"
    assert SCRIPT.build_by_setuptools(tree)(tree / "into", log) == 3
    assert f"'build_ext', '--build-lib', '{tree / 'into'}'" in log.read_text()


def test_an_unknown_word_is_refused() -> None:
    command = [sys.executable, ROOT / "scripts/compile_checkout.py", "--twice"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert (ended.returncode, ended.stderr) == (2, "usage: scripts/compile [--once]\n")
