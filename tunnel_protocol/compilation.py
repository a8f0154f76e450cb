"""Which form of the program runs: compiled, or as it is written. Imported first by every package that has both forms.

Compiled modules count all together or not at all, because they rely on each other. A checkout runs what was compiled of
exactly its sources, from `build/compiled`, and as written if there is no such thing; whatever lies compiled beside its
sources is not used. An installation has its compiled modules beside the sources. A process with `LLM_ROUTER_PURE_PYTHON=1`
in its environment runs as written. See `compiled_form` and docs/architecture.md, "Compiled form".
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
"""Environment variable that asks for the program as it is written; `0` and nothing do not."""


class OneForm:
    """Finds the modules of our packages: those that are in a compiled form there and nowhere else, others by their source.

    An entry of `sys.meta_path`; the abstract class for those is not used, to import it takes longer than all of this.

    Compiled modules beside the sources are hidden. What belongs to the form is settled here once: what is compiled, changed
    or removed while the process runs does not make it mix two forms.
    """

    def __init__(self, root: Path, compiled: Mapping[str, str]) -> None:
        """`compiled` has the names of compiled modules with their files; it is empty for the program as it is written."""
        self._root = root
        self._compiled = compiled
        self._by_source: dict[str, FileFinder] = {}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The module of ours with that name; None for anybody else's. Raises ModuleNotFoundError if it is not used."""
        parents, _, name = fullname.rpartition(".")
        if path is None:  # of the top level only the libraries that compiled modules share
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
        """Whether `path` leads to our package and not to one of the same name in somebody else's project."""
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
    """Whether an environment asks for the program as it is written."""
    return environment.get(PURE_PYTHON, "0") not in ("", "0")


def decide(root: Path, environment: Mapping[str, str]) -> tuple[OneForm | None, str | None]:
    """What finds our modules in `root` (None: the interpreter itself), and why they run as written (None: they do not).

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
    """Why there is no compiled form of `sources`: what differs from those that were compiled, and what to do."""
    difference = ""
    try:
        for newest in forms(root)[:1]:
            names = changed(sources, (newest / MANIFEST).read_text())
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            difference = f", {', '.join(names[:3])}{more} changed after compilation"
    except OSError:  # removed meanwhile
        pass
    return f"no compiled form of these sources{difference}; make compile makes one"


def reported() -> dict[str, object]:
    """Fields for the first log line of a process: which form runs, and why as written."""
    if AS_WRITTEN_BECAUSE is None:
        return {"compiled": True}
    return {"compiled": False, "as_written_because": AS_WRITTEN_BECAUSE}


def description() -> str:
    """The same for a reader: `compiled`, or `as written (why)`."""
    return "compiled" if AS_WRITTEN_BECAUSE is None else f"as written ({AS_WRITTEN_BECAUSE})"


AS_WRITTEN_BECAUSE: str | None
"""Why this process runs the program as it is written; None if it runs compiled modules."""

_FINDER, AS_WRITTEN_BECAUSE = decide(Path(__file__).resolve().parents[1], os.environ)
if _FINDER is not None:
    sys.meta_path.insert(0, _FINDER)
