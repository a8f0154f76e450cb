"""What setup.py compiles is fit for it, and a build makes all modules or none."""

import ast
import importlib.util
import re
from collections.abc import Iterator
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from types import ModuleType

import pytest
from setuptools import Distribution, Extension  # type: ignore[import-untyped]
from setuptools.errors import CompileError  # type: ignore[import-untyped]

from tunnel_protocol import compiled_form

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
    named = [*compiled_form.AS_WRITTEN, *compiled_form.COMPILED_MODULES]
    assert len(set(named)) == len(named)
    assert [name for name in named if not (ROOT / name).is_file()] == []
    assert [name for name in compiled_form.COMPILED_PACKAGES if not (ROOT / name / "__init__.py").is_file()] == []


def imported(path: Path) -> Iterator[str]:
    """Files of the two packages that a module imports, by the names of modules or of what is in them."""
    for statement in ast.walk(ast.parse(path.read_text())):
        names: list[str] = []
        if isinstance(statement, ast.ImportFrom) and statement.module is not None:
            names = [statement.module, *(f"{statement.module}.{alias.name}" for alias in statement.names)]
        elif isinstance(statement, ast.Import):
            names = [alias.name for alias in statement.names]
        for name in names:
            parts = name.split(".")
            if parts[0] in compiled_form.PACKAGES:
                parents = ["/".join([*parts[:count], "__init__.py"]) for count in range(1, len(parts) + 1)]
                files = [*parents, "/".join(parts) + ".py", "/".join(parts) + ".pyi"]
                yield from (file for file in files if (ROOT / file).is_file())


def test_all_that_compiled_modules_import_is_in_the_digest(sources: list[Path]) -> None:
    """Types and constants of a module are compiled into those that import it."""
    remaining = [path.relative_to(ROOT).as_posix() for path in [*sources, *SPEEDUPS]]
    found: set[str] = set()
    while remaining:
        name = remaining.pop()
        if name not in found:
            found.add(name)
            if not name.endswith(".pyx"):
                remaining += imported(ROOT / name)
    assert len(found) > len(sources)
    assert found - {line.partition(" ")[2] for line in compiled_form.manifest(ROOT).splitlines()} == set()


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
    said = f"Python version of `{path.name}`"
    return [other.relative_to(ROOT).as_posix() for other in path.parent.glob("*.py") if said in other.read_text()]


def test_there_are_such_files() -> None:
    assert len(SPEEDUPS) >= 3


@by_speedups
def test_a_stub_offers_what_is_compiled(speedups: Path) -> None:
    assert public_names_of_stub(speedups.with_suffix(".pyi")) == public_names(speedups)


@by_speedups
def test_a_twin_offers_it_too_and_is_not_compiled(speedups: Path) -> None:
    (twin,) = twins(speedups)
    assert twin in compiled_form.AS_WRITTEN
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

    def __init__(self, monkeypatch: pytest.MonkeyPatch, makes: int = 2) -> None:
        names = ("router.app", "router.wire")
        distribution = Distribution({"packages": ["router"], "ext_modules": [Extension(name, []) for name in names]})
        self.command = SETUP.OptionalBuild(distribution)
        self.command.build_lib, self.command.build_temp = "build", "build/temp"
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


def test_a_build_leaves_nothing_of_an_earlier_one(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Build(monkeypatch).command.run()
    assert remains(tree / "build") == {BUILT: "new", BESIDE: "new"}
    assert len(remains(tree)) == 3
    assert [name for name in OTHERS if not (tree / name).exists()] == []


@pytest.mark.parametrize("makes", [0, 1])
def test_a_failed_build_leaves_nothing_compiled(
    tree: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], makes: int
) -> None:
    build = Build(monkeypatch, makes)
    build.command.run()
    assert "not compiled, the packages run as written: cc1: no" in capsys.readouterr().err
    assert remains(tree / "build") == {}
    assert build.command.get_outputs() == []
    assert len(remains(tree)) == 3
    assert [name for name in OTHERS if not (tree / name).exists()] == []


def test_nothing_is_built_beside_the_sources(
    tree: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    build = Build(monkeypatch)
    build.command.inplace = True  # as an editable installation asks for
    build.command.run()
    assert "nothing is compiled beside sources; scripts/compile compiles a checkout" in capsys.readouterr().err
    assert "new" not in remains(tree).values()
    assert build.command.extensions == []


def test_it_is_an_error_if_compiled_modules_are_required(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_ROUTER_COMPILE", "require")
    with pytest.raises(SystemExit, match="error: cannot compile: cc1: no"):
        Build(monkeypatch, 1).command.run()


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
