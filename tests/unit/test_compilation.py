"""Compiled or as written: one form for the whole process, compiled of exactly these sources, and a switch."""

import importlib
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tunnel_protocol import compilation, compiled_form
from tunnel_protocol.compilation import OneForm, decide
from tunnel_protocol.compiled_form import SUFFIX

ROOT = Path(__file__).resolve().parents[2]
NOTHING = "no compiled form of these sources; make compile makes one"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A checkout that can decide which form it runs, with one module of ours in each package."""
    for name in ("__init__.py", "compilation.py", "compiled_form.py"):
        (tmp_path / "tunnel_protocol").mkdir(exist_ok=True)
        shutil.copy(ROOT / "tunnel_protocol" / name, tmp_path / "tunnel_protocol" / name)
    for name in ("setup.py", "tunnel_protocol/wire.py", "tunnel_protocol/quic/__init__.py", "router/proxy/attempt.py"):
        write(tmp_path / name, "ORIGIN = __file__\n")
    return tmp_path


def write(path: Path, text: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def compiled(root: Path, *modules: str) -> Path:
    """Lay down a compiled form of the sources in `root`, with modules that nobody loads."""
    sources = compiled_form.manifest(root)
    form = compiled_form.form_of(root, sources)
    for module in modules or ("tunnel_protocol/wire", "router_compiled__mypyc"):
        write(form / f"{module}{SUFFIX}")
    write(form / compiled_form.MANIFEST, sources)
    return form


def why(root: Path) -> str | None:
    return decide(root, {})[1]


def origin(root: Path, module: str, **environment: str) -> str:
    """Where a process of its own in `root` finds a module; relative to `root`, which may be a link."""
    script = "import sys, tunnel_protocol, importlib.util as u; print(u.find_spec(sys.argv[1]).origin)"
    ended = subprocess.run(
        [sys.executable, "-c", script, module],
        cwd=root,
        env={
            **{k: v for k, v in os.environ.items() if k not in (compilation.PURE_PYTHON, "PYTHONPATH")},
            **environment,
        },
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return os.path.relpath(os.path.realpath(ended.stdout.strip()), root.resolve())


# A checkout -------------------------------------------------------------------------------------------------------------


def test_what_was_compiled_of_these_sources_is_used(tree: Path) -> None:
    form = compiled(tree).relative_to(tree)
    assert why(tree) is None
    assert origin(tree, "tunnel_protocol.wire") == f"{form}/tunnel_protocol/wire{SUFFIX}"
    assert origin(tree, "router_compiled__mypyc") == f"{form}/router_compiled__mypyc{SUFFIX}"
    assert origin(tree, "router.proxy.attempt") == "router/proxy/attempt.py"


def test_without_it_the_program_runs_as_written_and_says_what_to_do(tree: Path) -> None:
    assert why(tree) == NOTHING
    assert origin(tree, "tunnel_protocol.wire") == "tunnel_protocol/wire.py"


def test_a_changed_source_runs_as_written_and_is_named_and_changed_back_it_runs_compiled(tree: Path) -> None:
    form = compiled(tree).relative_to(tree)
    source = tree / "tunnel_protocol/wire.py"
    before = source.read_text()
    source.write_text("# changed\n")
    assert why(tree) == (
        "no compiled form of these sources, tunnel_protocol/wire.py changed after compilation; make compile makes one"
    )
    assert origin(tree, "tunnel_protocol.wire") == "tunnel_protocol/wire.py"
    source.write_text(before)
    assert why(tree) is None
    assert origin(tree, "tunnel_protocol.wire") == f"{form}/tunnel_protocol/wire{SUFFIX}"


def test_the_age_of_a_source_does_not_matter(tree: Path) -> None:
    compiled(tree)
    os.utime(tree / "tunnel_protocol/wire.py", (2**31, 2**31))
    assert why(tree) is None


@pytest.mark.parametrize(
    "name",
    [
        "setup.py",
        "pyproject.toml",
        "requirements/build.txt",
        "tunnel_protocol/capnp_speedups.pyx",
        "tunnel_protocol/quic/new.pyi",
        "router/telemetry/metrics.py",
    ],
)
def test_whatever_the_result_depends_on_makes_other_sources(tree: Path, name: str) -> None:
    compiled(tree)
    write(tree / name, "# other\n")
    assert f", {name} changed after compilation" in str(why(tree))


@pytest.mark.parametrize("name", ["router/process/app.py", "tests/test_x.py", "tunnel_protocol/.#wire.py", "README.md"])
def test_what_it_does_not_depend_on_may_change(tree: Path, name: str) -> None:
    compiled(tree)
    write(tree / name, "# other\n")
    (tree / "tunnel_protocol/.#dangling.py").symlink_to("nowhere")  # as some editors lock a file
    assert why(tree) is None


def test_of_many_changed_sources_some_are_named(tree: Path) -> None:
    compiled(tree)
    for number in range(5):
        write(tree / f"router/ports/p{number}.py")
    assert ", router/ports/p0.py, router/ports/p1.py, router/ports/p2.py and 2 more changed" in str(why(tree))


def test_a_form_of_another_interpreter_is_not_used(tree: Path) -> None:
    form = compiled(tree)
    form.rename(form.with_name(form.name.replace("cpython-3", "cpython-4")))
    assert why(tree) == NOTHING


def test_a_half_built_directory_is_not_used(tree: Path) -> None:
    form = compiled(tree)
    form.rename(form.with_name(".aside-new"))
    assert why(tree) == NOTHING
    assert origin(tree, "tunnel_protocol.wire") == "tunnel_protocol/wire.py"


@pytest.mark.parametrize("has_form", [False, True])
def test_old_files_beside_the_sources_are_not_used(tree: Path, has_form: bool) -> None:
    for name in ("tunnel_protocol/wire", "router/proxy/attempt", "tunnel_protocol/gone", "router_compiled__mypyc"):
        write(tree / f"{name}{SUFFIX}")
    if has_form:
        form = f"{compiled(tree).relative_to(tree)}/"
        assert origin(tree, "router_compiled__mypyc") == f"{form}router_compiled__mypyc{SUFFIX}"
    assert origin(tree, "tunnel_protocol.wire") == (
        f"{form}tunnel_protocol/wire{SUFFIX}" if has_form else "tunnel_protocol/wire.py"
    )
    assert origin(tree, "router.proxy.attempt") == "router/proxy/attempt.py"
    with pytest.raises(subprocess.CalledProcessError):
        origin(tree, "tunnel_protocol.gone")


def test_the_switch_asks_for_the_program_as_written(tree: Path) -> None:
    compiled(tree)
    assert decide(tree, {"LLM_ROUTER_PURE_PYTHON": "1"})[1] == "LLM_ROUTER_PURE_PYTHON is set"
    assert origin(tree, "tunnel_protocol.wire", LLM_ROUTER_PURE_PYTHON="1") == "tunnel_protocol/wire.py"
    assert decide(tree, {"LLM_ROUTER_PURE_PYTHON": "0"})[1] is None


def test_a_form_that_is_removed_at_the_wrong_moment_is_not_named(tree: Path) -> None:
    (compiled(tree) / compiled_form.MANIFEST).unlink()
    write(tree / "tunnel_protocol/wire.py")
    assert why(tree) == NOTHING


# An installation --------------------------------------------------------------------------------------------------------


def test_an_installation_has_them_beside_the_sources(tree: Path) -> None:
    (tree / "setup.py").unlink()
    assert why(tree) == "installed without compiled modules"
    write(tree / f"tunnel_protocol/wire{SUFFIX}")
    assert decide(tree, {}) == (None, None)
    assert origin(tree, "tunnel_protocol.wire") == f"tunnel_protocol/wire{SUFFIX}"
    assert origin(tree, "tunnel_protocol.wire", LLM_ROUTER_PURE_PYTHON="1") == "tunnel_protocol/wire.py"


# One process ------------------------------------------------------------------------------------------------------------


def test_what_happens_to_files_later_does_not_make_a_process_mix_forms(tree: Path) -> None:
    form = compiled(tree)
    finder, _ = decide(tree, {})
    assert finder is not None
    path = [str(tree / "tunnel_protocol")]
    shutil.rmtree(form)
    spec = finder.find_spec("tunnel_protocol.wire", path)
    assert spec is not None
    assert spec.origin == str(form / f"tunnel_protocol/wire{SUFFIX}")  # fails to load, and no source is taken for it
    with pytest.raises(ImportError):
        importlib.util.module_from_spec(spec)
    as_written, _ = decide(tree, {})
    compiled(tree)
    assert as_written is not None
    spec = as_written.find_spec("tunnel_protocol.wire", path)
    assert spec is not None
    assert spec.origin == str(tree / "tunnel_protocol/wire.py")


def test_others_modules_are_left_alone_and_what_has_no_source_is_not_used(tree: Path, tmp_path: Path) -> None:
    finder = OneForm(tree, {})
    path = [str(tree / "tunnel_protocol")]
    assert finder.find_spec("aioquic.quic", path) is None
    assert finder.find_spec("tunnel_protocol", None) is None
    with pytest.raises(
        ModuleNotFoundError, match=r"tunnel_protocol\.speedups is not used: the program runs as written"
    ):
        finder.find_spec("tunnel_protocol.speedups", path)
    write(tree / "elsewhere/router/app.py")
    assert OneForm(tree, {"router.app": "app"}).find_spec("router.app", [str(tree / "elsewhere/router")]) is None


def test_a_link_to_the_checkout_is_the_checkout(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    link = tmp_path_factory.mktemp("links") / "link"
    link.symlink_to(tree)
    form = compiled(tree).relative_to(tree)
    assert origin(link, "tunnel_protocol.wire") == f"{form}/tunnel_protocol/wire{SUFFIX}"
    assert origin(link, "tunnel_protocol.wire", PYTHONPATH=str(link)) == f"{form}/tunnel_protocol/wire{SUFFIX}"


@pytest.mark.parametrize("wish", ["1", "0"])
def test_a_process_runs_in_one_form(wish: str) -> None:
    """No module that is compiled comes from the other form, whatever is imported first."""
    script = (
        "import sys, router.process.app, tunnel_protocol.compilation as c\n"
        "forms = {m.__spec__.origin.endswith('.py') for n, m in sys.modules.items()\n"
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
    spec = importlib.import_module("tunnel_protocol.quic.ranges").__spec__
    assert spec is not None
    assert spec.origin is not None
    compiled_here = not spec.origin.endswith(".py")
    assert compiled_here == (compilation.AS_WRITTEN_BECAUSE is None)


# What is told -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("because", "reported", "told"),
    [
        (None, {"compiled": True}, "compiled"),
        ("so", {"compiled": False, "as_written_because": "so"}, "as written (so)"),
    ],
)
def test_the_form_and_the_reason_are_told(
    monkeypatch: pytest.MonkeyPatch, because: str | None, reported: dict[str, object], told: str
) -> None:
    monkeypatch.setattr(compilation, "AS_WRITTEN_BECAUSE", because)
    assert compilation.reported() == reported
    assert compilation.description() == told


@pytest.mark.parametrize("loudness", ["-q", "-v"])
@pytest.mark.parametrize(("pure", "code"), [("0", 4), ("1", 0)])
def test_where_the_compiled_form_is_required_no_other_is_tested(
    tree: Path, pure: str, code: int, loudness: str
) -> None:
    write(tree / "test_nothing.py", "def test_nothing(): pass\n")
    plugin = "llm_router = None\ndef pytest_configure(): pass\ndef pytest_runtest_makereport(): pass\n"
    write(tree / "llm_request_router/pytest_plugin.py", plugin)
    shutil.copy(ROOT / "tests/conftest.py", tree / "conftest.py")
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", loudness, "test_nothing.py"],
        cwd=tree,
        env={
            **os.environ,
            "LLM_ROUTER_PURE_PYTHON": pure,
            "LLM_ROUTER_COMPILE": "require",
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",  # they take seconds to import
            "PYTHONPATH": f"{tree}{os.pathsep}{ROOT / 'tests'}",
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert ended.returncode == code, ended.stdout + ended.stderr
    if code:
        assert f"LLM_ROUTER_COMPILE is require, but the program runs as written ({NOTHING})" in ended.stderr
    else:
        assert ended.stdout.count("program: as written (LLM_ROUTER_PURE_PYTHON is set)\n") == 1
