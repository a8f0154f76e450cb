"""The optional compiled form of the packages; everything else about the build is in pyproject.toml.

Two compilers, one rule: the program as it is written is complete, and nothing here is needed to run it.

- mypyc compiles the modules of `COMPILED_PACKAGES` (tunnel_protocol/compiled_form.py) as they are. Their source is their twin.
- Cython compiles the few `.pyx` files, which work on single bytes. Each has a Python twin that its module falls back to.

Without mypy, Cython, the runtime dependencies (with types that fit) or a C compiler the packages are built uncompiled, with
a line that says so. `LLM_ROUTER_COMPILE=0` asks for that, `LLM_ROUTER_COMPILE=require` makes it an error. In a checkout
nothing is compiled beside the sources: scripts/compile has it built in a directory of its own.
"""

import os
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext


def _by_path(path: Path) -> ModuleType:
    """A module of a package that is not imported: that would decide which form of it runs."""
    spec = spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise SystemExit(f"error: cannot read {path}")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


FORM = _by_path(Path(__file__).resolve().parent / "tunnel_protocol/compiled_form.py")


class OptionalBuild(build_ext):
    """Goes on without compiled modules if there is no working C compiler, unless they are required."""

    def run(self) -> None:
        """Build all extensions or none: modules compiled together rely on each other. None of an earlier build stays."""
        try:
            if not self.inplace:
                super().run()
            else:  # of an editable installation, too
                _go_on_without("nothing is compiled beside sources; scripts/compile compiles a checkout")
                self.extensions = []
        except Exception as error:  # noqa: BLE001 - whatever it is, the packages run without
            _go_on_without(str(error))
            self.extensions = []
        made = {Path(self.get_ext_filename(self.get_ext_fullname(extension.name))) for extension in self.extensions}
        for path in _compiled_below(Path(self.build_lib)):
            if path.relative_to(self.build_lib) not in made:
                path.unlink()


def _compiled_below(root: Path) -> list[Path]:
    suffix = EXTENSION_SUFFIXES[0]
    found = [path for package in FORM.PACKAGES for path in (root / package).rglob(f"*{suffix}")]
    return [*found, *root.glob(f"*_compiled__mypyc{suffix}")]


_DIRECT_CALLS = ("-fvisibility=hidden", "-fno-plt")
"""Calls from one compiled function to another go there directly, and can be inlined, instead of through a table of the linker."""

_QUICK_WARNINGS = ("-Wno-misleading-indentation",)
"""This warning alone takes GCC five of seven minutes: mypyc indents each module further than the one before, by thousands of blanks."""

_COLD_FUNCTIONS = """\
#include <Python.h>
/* What runs only when something fails. The compiler then keeps the code that leads there apart from the code that runs: a
   quarter of the whole, which would fill the instruction cache between the lines. */
void CPy_AddTraceback(const char *, const char *, int, PyObject *) __attribute__((cold));
void CPy_TypeError(const char *, PyObject *) __attribute__((cold));
void CPy_TypeErrorTraceback(const char *, const char *, int, PyObject *, const char *, PyObject *) __attribute__((cold));
void CPy_AttributeError(const char *, const char *, const char *, const char *, int, PyObject *) __attribute__((cold));
void CPyError_OutOfMemory(void) __attribute__((cold));
void PyErr_SetString(PyObject *, const char *) __attribute__((cold));
"""


def _wish() -> str:
    return os.environ.get("LLM_ROUTER_COMPILE", "1")


def _go_on_without(why: str) -> None:
    if _wish() == "require":
        raise SystemExit(f"error: cannot compile: {why}")
    print(f"not compiled, the packages run as written: {why}", file=sys.stderr)


def _sources() -> list[str]:
    found = [path for package in FORM.COMPILED_PACKAGES for path in sorted(Path(package).glob("*.py"))]
    found += [Path(name) for name in FORM.COMPILED_MODULES]
    return [path.as_posix() for path in found if path.name != "__init__.py" and path.as_posix() not in FORM.AS_WRITTEN]


def _extensions() -> list[Extension]:
    missing = [name for name in ("mypyc", "Cython", "aioquic", "structlog", "xxhash") if find_spec(name) is None]
    if _wish() == "0":
        _go_on_without("LLM_ROUTER_COMPILE is 0")
    elif missing:
        _go_on_without(f"{', '.join(missing)} not installed")
    else:
        try:
            return _translated()
        except SystemExit:
            _go_on_without("mypyc found the errors above")
        except Exception as error:  # noqa: BLE001 - the compilers' own mistakes, too
            _go_on_without(repr(error))
    return []


def _translated() -> list[Extension]:
    from Cython.Build import cythonize
    from mypyc.build import mypycify

    level = os.environ.get("LLM_ROUTER_OPT_LEVEL", "2")
    Path("build").mkdir(exist_ok=True)
    cold = Path("build/cold_functions.h")
    cold.write_text(_COLD_FUNCTIONS)
    by_cython = [
        Extension(".".join(path.with_suffix("").parts), [path.as_posix()], extra_compile_args=[f"-O{level}"])
        for path in sorted(Path("tunnel_protocol").rglob("*.pyx"))
    ]
    # `quic/aioquic_handshake` is not compiled: its classes derive from aioquic's, whose private annotations do not all hold
    # and would be enforced by mypyc.
    by_mypyc = mypycify(
        ["--config-file", "pyproject.toml", "--no-error-summary", *_sources()],
        separate=[
            ([name for name in _sources() if name.startswith(package)], f"{package}_compiled")
            for package in FORM.PACKAGES
        ],
        opt_level=level,
        debug_level="0",
    )
    for extension in by_mypyc:
        extension.extra_compile_args += [*_DIRECT_CALLS, *_QUICK_WARNINGS, "-include", cold.as_posix()]
    return [*cythonize(by_cython, build_dir="build/cython", language_level=3, quiet=True), *by_mypyc]


if __name__ == "__main__":  # tests import the rest
    setup(ext_modules=_extensions(), cmdclass={"build_ext": OptionalBuild})
