"""What setup.py compiles is fit for it, and a build makes all modules or none."""

import ast
import importlib.util
import os
import re
from collections.abc import Iterator
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from types import ModuleType

import pytest
from setuptools import Distribution, Extension  # type: ignore[import-untyped]
from setuptools.errors import CompileError  # type: ignore[import-untyped]

ROOT = Path(__file__).resolve().parents[2]
SUFFIX = EXTENSION_SUFFIXES[0]


def setup_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("setup_script", ROOT / "setup.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SETUP = setup_script()
SPEEDUPS = sorted((ROOT / "tunnel_protocol").rglob("*.pyx"))
by_speedups = pytest.mark.parametrize("speedups", SPEEDUPS, ids=lambda path: path.stem)


# mypyc ------------------------------------------------------------------------------------------------------------------


def rebound_exceptions(source: str) -> Iterator[str]:
    """Functions with two `except ... as` that have one name for different types.

    mypyc gives the name the type of the first, and the second raises TypeError when it catches something.
    """
    for function in ast.walk(ast.parse(source)):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            types: dict[str, set[str]] = {}
            for handler in handlers(function):
                if handler.name is not None and handler.type is not None:
                    types.setdefault(handler.name, set()).add(ast.unparse(handler.type))
            for name, caught in types.items():
                if len(caught) > 1:
                    yield f"{function.name}: {name} is {' and '.join(sorted(caught))}"


def handlers(node: ast.AST) -> Iterator[ast.ExceptHandler]:
    """Those of a function, without those of functions in it."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ExceptHandler):
            yield child
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from handlers(child)


@pytest.fixture
def sources(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """All modules that mypyc compiles."""
    monkeypatch.chdir(ROOT)
    return [ROOT / name for name in SETUP._sources()]


def test_no_name_is_bound_to_exceptions_of_different_types(sources: list[Path]) -> None:
    assert len(sources) > 50
    assert [f"{path.name}: {found}" for path in sources for found in rebound_exceptions(path.read_text())] == []


TWICE = """
def twice():
    try:
        work()
    except {0} as error:
        tell(error)
    {1}
        try:
            work()
        except {2} as error:
            tell(error)
"""


@pytest.mark.parametrize(
    ("first", "between", "second", "found"),
    [
        ("OSError", "if more:", "ValueError", ["twice: error is OSError and ValueError"]),
        ("(A, B)", "for _ in more:", "A", ["twice: error is (A, B) and A"]),
        ("OSError", "if more:", "OSError", []),
        ("OSError", "def inner():", "ValueError", []),
    ],
)
def test_such_a_name_is_found(first: str, between: str, second: str, found: list[str]) -> None:
    assert list(rebound_exceptions(TWICE.format(first, between, second))) == found


def test_what_is_named_exists_and_is_named_once() -> None:
    named = [*SETUP.AS_WRITTEN, *SETUP.COMPILED_MODULES]
    assert len(set(named)) == len(named)
    assert [name for name in named if not (ROOT / name).is_file()] == []
    assert [name for name in SETUP.COMPILED_PACKAGES if not (ROOT / name / "__init__.py").is_file()] == []


# Cython -----------------------------------------------------------------------------------------------------------------


def public_names_of_stub(path: Path) -> set[str]:
    names = set()
    for statement in ast.parse(path.read_text()).body:
        if isinstance(statement, ast.FunctionDef | ast.ClassDef):
            names.add(statement.name)
        elif isinstance(statement, ast.ImportFrom):
            names |= {alias.asname for alias in statement.names if alias.asname == alias.name}
    return names


def public_names(path: Path) -> set[str]:
    """What a .pyx offers to Python: its functions and classes."""
    found = re.findall(r"^(?:def|cpdef(?: [\w.]+)?|class|cdef class) ([a-zA-Z]\w*)", path.read_text(), re.MULTILINE)
    return set(found)


def twins(path: Path) -> list[str]:
    """The modules beside a .pyx that say to be its twin."""
    said = f"Python twin of `{path.name}`"
    return [other.relative_to(ROOT).as_posix() for other in path.parent.glob("*.py") if said in other.read_text()]


def test_there_are_such_files() -> None:
    assert len(SPEEDUPS) >= 3


@by_speedups
def test_a_stub_offers_what_is_compiled(speedups: Path) -> None:
    assert public_names_of_stub(speedups.with_suffix(".pyi")) == public_names(speedups)


@by_speedups
def test_a_twin_offers_it_too_and_is_not_compiled(speedups: Path) -> None:
    (twin,) = twins(speedups)
    assert twin in SETUP.AS_WRITTEN
    body = ast.parse((ROOT / twin).read_text()).body
    defined = {statement.name for statement in body if isinstance(statement, ast.FunctionDef | ast.ClassDef)}
    assert public_names(speedups) <= defined


# A build ----------------------------------------------------------------------------------------------------------------

BUILT, BESIDE, LEFT = f"router/app{SUFFIX}", f"router/wire{SUFFIX}", f"router_compiled__mypyc{SUFFIX}"
OTHERS = ("router/app.abi3.so", f".venv/lib{SUFFIX}", "router/app.py")


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tree with what an earlier build has left, beside sources and in `build`."""
    for root in (tmp_path, tmp_path / "build"):
        for name in (BUILT, BESIDE, LEFT, *OTHERS):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text("earlier")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LLM_ROUTER_COMPILE", raising=False)
    return tmp_path


class Build:
    """A build of two modules that makes as many as it is told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, makes: int = 2, *, inplace: bool = False) -> None:
        names = ("router.app", "router.wire")
        distribution = Distribution({"packages": ["router"], "ext_modules": [Extension(name, []) for name in names]})
        self.command = SETUP.OptionalBuild(distribution)
        self.command.build_lib, self.command.build_temp, self.command.inplace = "build", "build/temp", inplace
        self._remaining = makes
        monkeypatch.setattr(self.command, "build_extension", self._build_extension)
        self.command.ensure_finalized()

    def _build_extension(self, extension: Extension) -> None:
        if not self._remaining:
            raise CompileError("cc1: no")
        self._remaining -= 1
        Path(self.command.get_ext_fullpath(extension.name)).write_text("new")


def remains(root: Path) -> dict[str, str]:
    return {name: (root / name).read_text() for name in (BUILT, BESIDE, LEFT) if (root / name).exists()}


@pytest.mark.parametrize("inplace", [False, True])
def test_a_build_leaves_nothing_of_an_earlier_one(tree: Path, monkeypatch: pytest.MonkeyPatch, inplace: bool) -> None:
    Build(monkeypatch, inplace=inplace).command.run()
    assert remains(tree / "build") == {BUILT: "new", BESIDE: "new"}
    assert remains(tree) == remains(tree / "build" if inplace else tree)
    assert [name for name in OTHERS if not (tree / name).exists()] == []


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("makes", [0, 1])
def test_a_failed_build_leaves_nothing_compiled(
    tree: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], inplace: bool, makes: int
) -> None:
    build = Build(monkeypatch, makes, inplace=inplace)
    build.command.run()
    assert "not compiled, the packages run as written: cc1: no" in capsys.readouterr().err
    assert remains(tree / "build") == {}
    assert build.command.get_outputs() == []
    assert len(remains(tree)) == (0 if inplace else 3)
    assert [name for name in OTHERS if not (tree / name).exists()] == []


def test_it_is_an_error_if_compiled_modules_are_required(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_ROUTER_COMPILE", "require")
    with pytest.raises(SystemExit, match="error: cannot compile: cc1: no"):
        Build(monkeypatch, 1).command.run()


def test_a_source_that_changes_during_the_build_is_newer(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build = Build(monkeypatch, inplace=True)
    (tree / "router/wire.py").write_text("# changed meanwhile")
    build.command.run()
    assert (tree / BESIDE).stat().st_mtime < (tree / "router/wire.py").stat().st_mtime


def test_what_needed_no_new_compilation_is_newer_than_its_source(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.utime(tree / "router/app.py", (SETUP.STARTED_AT - 1, SETUP.STARTED_AT - 1))
    os.utime(tree / "build" / BUILT, (1, 1))
    build = Build(monkeypatch, inplace=True)
    monkeypatch.setattr(build.command, "build_extension", lambda _: None)
    build.command.run()
    assert (tree / BUILT).stat().st_mtime > (tree / "router/app.py").stat().st_mtime


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (SystemExit(1), "mypyc found the errors above"),
        (ValueError("no such statement"), "ValueError('no such statement')"),
    ],
)
def test_what_cannot_be_translated_runs_as_written(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: BaseException, told: str
) -> None:
    def fail() -> list[Extension]:
        raise error

    monkeypatch.delenv("LLM_ROUTER_COMPILE", raising=False)
    monkeypatch.setattr(SETUP, "_translated", fail)
    assert SETUP._extensions() == []
    assert f"run as written: {told}" in capsys.readouterr().err
    monkeypatch.setenv("LLM_ROUTER_COMPILE", "require")
    with pytest.raises(SystemExit, match="cannot compile"):
        SETUP._extensions()


def test_a_missing_compiler_is_named_and_none_may_be_wished(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(SETUP, "find_spec", lambda name: None if name == "Cython" else name)
    monkeypatch.setenv("LLM_ROUTER_COMPILE", "0")
    assert SETUP._extensions() == []
    assert "LLM_ROUTER_COMPILE is 0" in capsys.readouterr().err
    monkeypatch.setenv("LLM_ROUTER_COMPILE", "require")
    with pytest.raises(SystemExit, match="cannot compile: Cython not installed"):
        SETUP._extensions()
