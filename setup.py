"""The optional compiled form of the packages; everything else about the build is in pyproject.toml.

Two compilers, one rule: the program as it is written is complete, and nothing here is needed to run it.

- mypyc compiles the modules of `COMPILED_PACKAGES` as they are. Their source is their twin.
- Cython compiles the few `.pyx` files, which work on single bytes. Each has a Python twin that its module falls back to.

Without mypy, Cython, the runtime dependencies (with types that fit) or a C compiler the packages are built uncompiled, with
a line that says so. `LLM_ROUTER_COMPILE=0` asks for that, `LLM_ROUTER_COMPILE=require` makes it an error.
"""

import os
import sys
import time
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.util import find_spec
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

COMPILED_PACKAGES = (
    "tunnel_protocol",
    "tunnel_protocol/quic",
    "router/balancing",
    "router/balancing/algorithms",
    "router/http1",
    "router/ports",
    "router/proxy",
    "router/registry",
    "router/tunnels",
)
COMPILED_MODULES = ("router/telemetry/families.py",)
AS_WRITTEN = (
    "tunnel_protocol/compilation.py",  # decides whether compiled modules are used
    # Python twins of the .pyx files: compiled, callers would be bound to them and not to the faster ones.
    "tunnel_protocol/capnp_layouts.py",
    "tunnel_protocol/quic/datagrams.py",
    "tunnel_protocol/quic/packets.py",
    "router/balancing/json_document.py",  # derives from int and str, which mypyc cannot
    "tunnel_protocol/small_file.py",  # waits for file systems: nothing to gain
)
PACKAGES = ("tunnel_protocol", "router")
STARTED_AT = time.time()


class OptionalBuild(build_ext):
    """Goes on without compiled modules if there is no working C compiler, unless they are required."""

    def run(self) -> None:
        """Build all extensions or none: modules compiled together rely on each other. None of an earlier build stays."""
        inplace = self.inplace  # the base class loses it when it fails
        try:
            super().run()
        except Exception as error:  # noqa: BLE001 - whatever it is, the packages run without
            _go_on_without(str(error))
            self.extensions = []
        made = {Path(self.get_ext_filename(self.get_ext_fullname(extension.name))) for extension in self.extensions}
        for root in [Path(self.build_lib), Path()] if inplace else [Path(self.build_lib)]:
            for path in _compiled_below(root):
                if path.relative_to(root) not in made:
                    path.unlink()
                elif root == Path():
                    os.utime(path, (STARTED_AT, STARTED_AT))  # older than a source that has changed meanwhile


def _compiled_below(root: Path) -> list[Path]:
    suffix = EXTENSION_SUFFIXES[0]
    found = [path for package in PACKAGES for path in (root / package).rglob(f"*{suffix}")]
    return [*found, *root.glob(f"*_compiled__mypyc{suffix}")]


def _wish() -> str:
    return os.environ.get("LLM_ROUTER_COMPILE", "1")


def _go_on_without(why: str) -> None:
    if _wish() == "require":
        raise SystemExit(f"error: cannot compile: {why}")
    print(f"not compiled, the packages run as written: {why}", file=sys.stderr)


def _sources() -> list[str]:
    found = [path for package in COMPILED_PACKAGES for path in sorted(Path(package).glob("*.py"))]
    found += [Path(name) for name in COMPILED_MODULES]
    return [path.as_posix() for path in found if path.name != "__init__.py" and path.as_posix() not in AS_WRITTEN]


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
    by_cython = [
        Extension(".".join(path.with_suffix("").parts), [path.as_posix()], extra_compile_args=[f"-O{level}"])
        for path in sorted(Path("tunnel_protocol").rglob("*.pyx"))
    ]
    # `quic/aioquic_engine` is not compiled: its classes derive from aioquic's, whose private annotations do not all hold
    # and would be enforced by mypyc.
    return [
        *cythonize(by_cython, build_dir="build/cython", language_level=3, quiet=True),
        *mypycify(
            ["--config-file", "pyproject.toml", "--no-error-summary", *_sources()],
            separate=[
                ([name for name in _sources() if name.startswith(package)], f"{package}_compiled")
                for package in PACKAGES
            ],
            opt_level=level,
            debug_level="0",
        ),
    ]


if __name__ == "__main__":  # tests import the lists
    setup(ext_modules=_extensions(), cmdclass={"build_ext": OptionalBuild})
