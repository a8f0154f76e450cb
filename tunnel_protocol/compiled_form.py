"""Which modules are compiled, and where the compiled form of a checkout is stored.

Importing this module has no side effect: setup.py runs it by its path, without the package. A checkout has its compiled
modules in `build/compiled/<tag>-<digest>`, in the directory structure of the packages. The digest covers all files that the
result depends on, so modules compiled from other sources are not found, and earlier ones are found again after `git switch`.
"""

import hashlib
import os
from collections.abc import Iterator
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

PACKAGES = ("tunnel_protocol", "router")
"""Packages with compiled modules; each is one mypyc group with its own shared library."""

COMPILED_PACKAGES = (
    "tunnel_protocol",
    "tunnel_protocol/quic",
    "router/balancing",
    "router/balancing/algorithms",
    "router/grpc",
    "router/http1",
    "router/openai",
    "router/ports",
    "router/proxy",
    "router/registry",
    "router/tunnels",
)
"""Packages whose modules mypyc compiles; subpackages are not included."""

COMPILED_MODULES = (
    # What each report of a worker runs through.
    "router/control_plane/idle_timer.py",
    "router/control_plane/immediate_update.py",
    "router/control_plane/last_report.py",
    "router/control_plane/message_limits.py",
    "router/control_plane/messages.py",
    "router/control_plane/unroutable_models.py",
    "router/openai/keys/authenticator.py",
    "router/openai/keys/bearer.py",
    "router/openai/keys/caller.py",
    "router/openai/keys/key_table.py",
    "router/openai/limits/counter.py",
    "router/openai/limits/fields.py",
    "router/openai/limits/limit_set.py",
    "router/openai/limits/limiter.py",
    "router/openai/limits/memory_counter.py",
    "router/openai/limits/token_bucket.py",
    "router/operators/durations.py",
    "router/operators/request_log.py",
    "router/telemetry/families.py",
    "router/telemetry/trace_context.py",
)
"""Modules of other packages that mypyc compiles."""

AS_WRITTEN = (
    # These modules decide whether compiled modules are used.
    "tunnel_protocol/compilation.py",
    "tunnel_protocol/compiled_form.py",
    # Python versions of the .pyx files: if compiled, callers would be bound to them and not to the faster .pyx ones.
    "tunnel_protocol/capnp_layouts.py",
    "tunnel_protocol/quic/datagrams.py",
    "tunnel_protocol/quic/packets.py",
    "router/balancing/json_document.py",  # derives from int and str, which mypyc cannot
    "router/openai/wire.py",  # classes by whose annotations msgspec decodes
    "tunnel_protocol/small_file.py",  # only waits for file systems: compiling gains nothing
)
"""Modules of `COMPILED_PACKAGES` that are not compiled."""

FORMS = "build/compiled"
"""Directory of a checkout that holds its compiled forms."""

SUFFIX = EXTENSION_SUFFIXES[0]
"""File name suffix of a compiled module; contains interpreter and platform."""

MANIFEST = "SOURCES"
"""File in a compiled form that lists the sources it was compiled from (see `manifest`)."""

# Types and constants of modules below these directories are compiled into the modules that import them.
# tests/unit/test_packaging.py checks this by the imports.
_SOURCES = (
    "tunnel_protocol",
    "router/control_plane",
    "router/operators",
    "router/telemetry",
    *(name for name in COMPILED_PACKAGES if name.startswith("router/")),
)
_SOURCE_SUFFIXES = (".py", ".pyi", ".pyx")
_BUILD_FILES = ("setup.py", "pyproject.toml", "requirements/build.txt", "requirements/run.txt", "router/__init__.py")
_TAG = SUFFIX.split(".")[1]


def is_checkout(root: Path) -> bool:
    """Whether `root` is a checkout and not an installation."""
    return (root / "setup.py").is_file()


def manifest(root: Path) -> str:
    """A line `sha256 path` for each file that the compiled form of the checkout `root` depends on, ordered by path.

    Raises OSError if a source cannot be read.
    """
    lines = []
    for name in sorted(_inputs(root)):
        with open(os.path.join(root, name), "rb", buffering=0) as file:  # noqa: PTH118, PTH123 - at every start: half the time
            lines.append(f"{hashlib.sha256(file.read()).hexdigest()} {name}\n")
    return "".join(lines)


def form_of(root: Path, sources: str) -> Path:
    """Directory of the form compiled from `sources`, a manifest, for this interpreter; it need not exist."""
    return root / FORMS / f"{_TAG}-{hashlib.sha256(sources.encode()).hexdigest()[:20]}"


def forms(root: Path) -> list[Path]:
    """All compiled forms of the checkout `root` for this interpreter, newest first."""
    found = [path for path in (root / FORMS).glob(f"{_TAG}-*") if path.is_dir()]
    return sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)


def attempted(root: Path) -> Path:
    """File that exists if compiling the checkout `root` for this interpreter was tried, successfully or not."""
    return root / FORMS / f"attempted-{_TAG}"


def modules_of(form: Path) -> dict[str, str]:
    """The modules of a compiled form, names to files."""
    found = {}
    for folder, _, files in os.walk(form):
        package = Path(folder).relative_to(form).parts
        for file in files:
            if file.endswith(SUFFIX):
                found[".".join([*package, file.removesuffix(SUFFIX)])] = os.path.join(folder, file)  # noqa: PTH118
    return found


def beside_sources(root: Path) -> list[Path]:
    """Compiled modules beside the sources: those of an installation, or left in a checkout by an earlier version."""
    return [path for package in PACKAGES for path in (root / package).rglob(f"*{SUFFIX}")]


def changed(sources: str, others: str) -> list[str]:
    """Paths of the files that differ between two manifests, or that only one of them contains."""
    return sorted({line.partition(" ")[2] for line in set(sources.splitlines()) ^ set(others.splitlines())})


def _inputs(root: Path) -> Iterator[str]:
    yield from (name for name in _BUILD_FILES if (root / name).is_file())
    below = set()
    for source in _SOURCES:
        for folder, folders, files in os.walk(root / source):
            folders[:] = [name for name in folders if name != "__pycache__"]
            package = os.path.relpath(folder, root).replace(os.sep, "/")
            # Skip hidden files, which editors create.
            below |= {f"{package}/{name}" for name in files if name.endswith(_SOURCE_SUFFIXES) and name[0] != "."}
    yield from below
