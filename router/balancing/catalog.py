"""Every algorithm a configuration may name: the modules of `router.balancing.algorithms`, and those of installed packages."""

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path

import router.balancing.algorithms
from router.balancing.algorithm import MakeAlgorithm
from router.balancing.registration import Registration


def builtin_algorithms() -> dict[str, Registration]:
    """The built-in algorithms by name, in the order in which messages list them."""
    package = router.balancing.algorithms
    # Sources, not `pkgutil`: an outdated compiled module whose source has gone is none of ours.
    names = {path.stem for folder in package.__path__ for path in Path(folder).glob("*.py")} - {"__init__"}
    found: list[Registration] = [import_module(f"{package.__name__}.{name}").ALGORITHM for name in names]
    found.sort(key=lambda one: (one.position, one.name))
    return {one.name: one for one in found}


class Catalog:
    """Algorithms by every spelling of their names. A built-in one is not replaced by a plug-in of its name."""

    def __init__(self, plugins: Mapping[str, MakeAlgorithm] | None = None) -> None:
        builtin = builtin_algorithms()
        added = {name: make for name, make in sorted((plugins or {}).items()) if name not in builtin}
        self._makers: dict[str, MakeAlgorithm] = {**builtin, **added}
        self._names: dict[str, str] = {}
        for group in (builtin, added):
            self._names |= {name: name for name in group}
            aliases = {alias: name for name in group for alias in self._aliases_of(name)}
            self._names |= {alias: name for alias, name in aliases.items() if alias not in self._names}
        # A name counts before an alias, whoever's it is.
        self._names |= {name: name for name in self._makers}

    def from_file(self, spelling: str) -> str | None:
        """The canonical name of a spelling in a file (case counts)."""
        return self._names.get(spelling)

    def from_header(self, spelling: str) -> str | None:
        """The canonical name of a header value: blanks, case and `_` for `-` are forgiven."""
        folded = "".join(chr(ord(c) + 32) if "A" <= c <= "Z" else c for c in spelling.strip(" \t")).replace("_", "-")
        return self._names.get(folded)

    def spellings(self) -> list[str]:
        """Everything a file may use."""
        return list(self._names)

    def maker(self, name: str) -> MakeAlgorithm | None:
        """What makes the algorithm of a canonical name."""
        return self._makers.get(name)

    def registration(self, name: str) -> Registration | None:
        """The declared settings of an algorithm; None if it takes any."""
        make = self._makers.get(name)
        return make if isinstance(make, Registration) else None

    def names_with(self, field: str) -> list[str]:
        """Algorithms that declare a setting of this name."""
        return [name for name, make in self._makers.items() if isinstance(make, Registration) and field in make.fields]

    def _aliases_of(self, name: str) -> tuple[str, ...]:
        registered = self.registration(name)
        return () if registered is None else registered.aliases
