"""Selects which form of the program runs: compiled modules or Python sources. Imported first by packages that have both.

Either all compiled modules are used or none, because they depend on each other. A checkout uses the modules in
`build/compiled` that were compiled from exactly its sources, or else the Python sources; compiled modules beside its sources
are not used. An installation has its compiled modules beside the sources. With `LLM_ROUTER_PURE_PYTHON=1` in the environment
the Python sources are used. See `compiled_form` and docs/architecture.md, "Compiled form".
"""

import os
import sys
from collections.abc import Mapping, Sequence
from importlib.machinery import SOURCE_SUFFIXES, ExtensionFileLoader, FileFinder, ModuleSpec, SourceFileLoader
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType

from tunnel_protocol.compiled_form import (
    MANIFEST,
    PACKAGES,
    beside_sources,
    changed,
    form_of,
    forms,
    is_checkout,
    manifest,
    modules_of,
)

PURE_PYTHON = "LLM_ROUTER_PURE_PYTHON"
"""Environment variable that selects the Python sources; unset, empty and `0` do not."""


class OneForm:
    """Finds the modules of this program: compiled ones only in the compiled form, the others as Python sources.

    An entry of `sys.meta_path`. The abstract base class for these is not used, because importing it takes longer than this class.

    Compiled modules beside the sources are ignored. The set of compiled modules is fixed at creation, so files that are
    compiled, changed or removed while the process runs cannot make it mix two forms.
    """

    def __init__(self, root: Path, compiled: Mapping[str, str]) -> None:
        """`compiled` maps names of compiled modules to their files; it is empty if the Python sources are used."""
        self._root = root
        self._compiled = compiled
        self._by_source: dict[str, FileFinder] = {}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec of a module of this program; None for other modules. Raises ModuleNotFoundError if the module is not used."""
        parents, _, name = fullname.rpartition(".")
        if path is None:  # top-level modules: only the shared libraries of compiled modules
            return self._extension(fullname) if fullname in self._compiled else None
        if parents.partition(".")[0] not in PACKAGES or not self._are_ours(parents, path):
            return None
        if fullname in self._compiled:
            return self._extension(fullname)
        for entry in path:
            spec = self._sources_in(entry).find_spec(fullname, target)
            if spec is not None:
                return spec
        why = f"there is no {name}.py" if self._compiled else "the program runs as written"
        raise ModuleNotFoundError(f"{fullname} is not used: {why}", name=fullname)

    def _are_ours(self, package: str, path: Sequence[str]) -> bool:
        """Whether `path` is that of this program's package and not of another project's package with the same name."""
        ours = os.path.join(self._root, *package.split("."))  # noqa: PTH118 - for every import
        return any(entry == ours or os.path.realpath(entry) == ours for entry in path)

    def _extension(self, fullname: str) -> ModuleSpec | None:
        file = self._compiled[fullname]
        return spec_from_file_location(fullname, file, loader=ExtensionFileLoader(fullname, file))

    def _sources_in(self, entry: str) -> FileFinder:
        if entry not in self._by_source:
            self._by_source[entry] = FileFinder(entry, (SourceFileLoader, SOURCE_SUFFIXES))
        return self._by_source[entry]


def asked_for(environment: Mapping[str, str]) -> bool:
    """Whether an environment selects the Python sources."""
    return environment.get(PURE_PYTHON, "0") not in ("", "0")


def decide(root: Path, environment: Mapping[str, str]) -> tuple[OneForm | None, str | None]:
    """The finder for the modules in `root` (None: the interpreter's), and why the Python sources are used (None: they are not).

    Raises OSError if the sources of a checkout cannot be read.
    """
    if asked_for(environment):
        return OneForm(root, {}), f"{PURE_PYTHON} is set"
    if not is_checkout(root):
        installed = beside_sources(root)
        return None, None if installed else "installed without compiled modules"
    sources = manifest(root)
    modules = modules_of(form_of(root, sources))
    return OneForm(root, modules), None if modules else _why_none_of(root, sources)


def _why_none_of(root: Path, sources: str) -> str:
    """Why there is no compiled form of `sources`: which files differ from the last compiled ones, and what to do."""
    difference = ""
    try:
        for newest in forms(root)[:1]:
            names = changed(sources, (newest / MANIFEST).read_text())
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            difference = f", {', '.join(names[:3])}{more} changed after compilation"
    except OSError:  # the file was removed meanwhile
        pass
    return f"no compiled form of these sources{difference}; make compile makes one"


def reported() -> dict[str, object]:
    """Fields for the first log line of a process: which form runs, and why it is not the compiled one."""
    if AS_WRITTEN_BECAUSE is None:
        return {"compiled": True}
    return {"compiled": False, "as_written_because": AS_WRITTEN_BECAUSE}


def description() -> str:
    """The form that runs as text: `compiled`, or `as written (reason)`."""
    return "compiled" if AS_WRITTEN_BECAUSE is None else f"as written ({AS_WRITTEN_BECAUSE})"


AS_WRITTEN_BECAUSE: str | None
"""Why this process uses the Python sources; None if it uses compiled modules."""

_FINDER, AS_WRITTEN_BECAUSE = decide(Path(__file__).resolve().parents[1], os.environ)
if _FINDER is not None:
    sys.meta_path.insert(0, _FINDER)
