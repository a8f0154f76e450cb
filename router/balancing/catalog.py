"""The algorithms that a configuration may name: those of `router.balancing.algorithms` and of installed packages."""

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path

import router.balancing.algorithms
from router.balancing.algorithm import MakeAlgorithm
from router.balancing.registration import Registration
from router.balancing.settings import CURRENT, BalancingSettings


def builtin_algorithms() -> dict[str, Registration]:
    """The built-in algorithms by name, in the order of error messages."""
    package = router.balancing.algorithms
    # By source files, not by `pkgutil`: a compiled module without a source is outdated.
    names = {path.stem for folder in package.__path__ for path in Path(folder).glob("*.py")} - {"__init__"}
    found: list[Registration] = [import_module(f"{package.__name__}.{name}").ALGORITHM for name in names]
    found.sort(key=lambda one: (one.position, one.name))
    return {one.name: one for one in found}


class Catalog:
    """Algorithms by every spelling of their names. A plug-in does not replace a built-in algorithm of the same name."""

    def __init__(
        self, plugins: Mapping[str, MakeAlgorithm] | None = None, settings: BalancingSettings = CURRENT
    ) -> None:
        builtin = builtin_algorithms()
        added = {name: make for name, make in sorted((plugins or {}).items()) if name not in builtin}
        self._makers: dict[str, MakeAlgorithm] = {**builtin, **added}
        self._builtin = frozenset(builtin)
        self._names: dict[str, str] = {}
        for group in (builtin, added):
            self._names |= {name: name for name in group}
            aliases = {alias: name for name in group for alias in self._aliases_of(name)}
            self._names |= {alias: name for alias, name in aliases.items() if alias not in self._names}
        if not settings.affinity_waits:
            self._makers |= {name: one.earlier for name, one in builtin.items() if one.earlier is not None}
        # A name takes precedence over an alias.
        self._names |= {name: name for name in self._makers}

    def from_file(self, spelling: str) -> str | None:
        """The canonical name of a spelling in a file (case-sensitive); None if unknown."""
        return self._names.get(spelling)

    def from_header(self, spelling: str) -> str | None:
        """The canonical name of a header value, ignoring blanks and case and taking `_` as `-`; None if unknown."""
        folded = "".join(chr(ord(c) + 32) if "A" <= c <= "Z" else c for c in spelling.strip(" \t")).replace("_", "-")
        return self._names.get(folded)

    def spellings(self) -> list[str]:
        """All spellings that a file may use."""
        return list(self._names)

    def maker(self, name: str) -> MakeAlgorithm | None:
        """The factory of the algorithm with a canonical name; None if unknown."""
        return self._makers.get(name)

    def registration(self, name: str) -> Registration | None:
        """The registration of an algorithm; None if it declares no settings and accepts any."""
        make = self._makers.get(name)
        return make if isinstance(make, Registration) else None

    def names(self) -> list[str]:
        """All canonical names."""
        return list(self._makers)

    def is_builtin(self, name: str) -> bool:
        """Whether the algorithm with a canonical name is one of this package."""
        return name in self._builtin

    def declared_settings(self) -> set[str]:
        """Names of the settings that any algorithm declares."""
        return {field for make in self._makers.values() if isinstance(make, Registration) for field in make.fields}

    def names_with(self, field: str) -> list[str]:
        """Names of the algorithms that declare a setting of this name."""
        return [name for name, make in self._makers.items() if isinstance(make, Registration) and field in make.fields]

    def _aliases_of(self, name: str) -> tuple[str, ...]:
        registered = self.registration(name)
        return () if registered is None else registered.aliases
