"""Which form of the program runs: compiled, or as it is written. Imported first by every package that has both forms.

Compiled modules lie beside their sources and are found before them. They count all together or not at all, because they
rely on each other: a checkout whose sources are newer than what was compiled of them runs as written, and so does a process
with `LLM_ROUTER_PURE_PYTHON=1` in its environment. See setup.py and docs/architecture.md, "Compiled form".
"""

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import EXTENSION_SUFFIXES, SOURCE_SUFFIXES, FileFinder, ModuleSpec, SourceFileLoader
from pathlib import Path
from types import ModuleType

PURE_PYTHON = "LLM_ROUTER_PURE_PYTHON"
"""Environment variable that asks for the program as it is written; `0` and nothing do not."""

PACKAGES = ("tunnel_protocol", "router")
_SUFFIX = EXTENSION_SUFFIXES[0]


class AsWritten(MetaPathFinder):
    """Finds modules of our packages by their source and hides what was compiled of them."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The source of a module of ours; None for anybody else's. Raises ModuleNotFoundError if it has no source."""
        if path is None or fullname.partition(".")[0] not in PACKAGES:
            return None
        for entry in path:
            spec = FileFinder(entry, (SourceFileLoader, SOURCE_SUFFIXES)).find_spec(fullname, target)
            if spec is not None:
                return spec
        raise ModuleNotFoundError(f"{fullname} is not used: the program runs as written", name=fullname)


def compiled_modules(root: Path) -> list[Path]:
    """What was compiled of our packages below `root` for this interpreter."""
    return [path for package in PACKAGES for path in (root / package).rglob(f"*{_SUFFIX}")]


def outdated(modules: Iterable[Path]) -> list[str]:
    """Names of sources that are newer than what was compiled of them."""
    found = []
    for module in modules:
        compiled_at = module.stat().st_mtime
        for suffix in (".py", ".pyx"):
            source = module.with_name(module.name.removesuffix(_SUFFIX) + suffix)
            if source.exists() and source.stat().st_mtime > compiled_at:
                found.append(source.name)
    return found


def why_as_written(root: Path, environment: Mapping[str, str]) -> str | None:
    """What keeps compiled modules from being used; None if nothing does."""
    modules = compiled_modules(root)
    if not modules:
        return "not compiled"
    if environment.get(PURE_PYTHON, "0") not in ("", "0"):
        return f"{PURE_PYTHON} is set"
    if not (root / "setup.py").exists():
        return None  # installed: sources and compiled modules came together, in no order
    newer = outdated(modules)
    return f"{', '.join(sorted(newer)[:3])} changed after compilation" if newer else None


AS_WRITTEN_BECAUSE = why_as_written(Path(__file__).resolve().parents[1], os.environ)
"""Why this process runs the program as it is written; None if it runs compiled modules."""

if AS_WRITTEN_BECAUSE is not None:
    sys.meta_path.insert(0, AsWritten())
