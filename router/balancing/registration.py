"""Registers an algorithm: its name, its settings and its factory. See docs/balancing.md, "Adding an algorithm".

Built-in algorithms and those of installed packages use the same function; the former in a module of
`router.balancing.algorithms`, the latter by an entry point.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random
from typing import Final, TypeVar

from router.balancing.algorithm import Algorithm, MakeAlgorithm
from router.balancing.fields import FieldKind, Fields

SettingsT = TypeVar("SettingsT")

LAST: Final = 1_000
"""The position of algorithms that set none."""


class Registration:
    """An algorithm with declared settings, created by `registration`. Can be called as a `MakeAlgorithm`."""

    __slots__ = ("_make", "_read", "aliases", "earlier", "fields", "kinds", "name", "position")

    def __init__(
        self,
        name: str,
        read: Callable[[Fields], object],
        make: MakeAlgorithm,
        aliases: tuple[str, ...],
        position: int,
        earlier: "Registration | None",
    ) -> None:
        self._read = read
        self._make = make
        self.name = name
        """Canonical name in configurations, the method header and metrics. The name of an entry point takes precedence."""
        self.aliases = aliases
        """Other spellings."""
        self.position = position
        """Position in the list of names in error messages, lower first."""
        self.earlier = earlier
        """Its form without waits for affinity (`BalancingSettings.affinity_waits`); None if that is the same."""
        nothing = Fields({})
        read(nothing)
        self.kinds: Mapping[str, FieldKind] = dict(nothing.kinds)
        """Its settings by name, and how they are read."""
        self.fields = frozenset(nothing.kinds)
        """Names of its settings; a definition with another one is refused."""

    def check(self, fields: Fields) -> None:
        """Read the settings, so that `fields.check()` can raise their errors."""
        self._read(fields)

    def __call__(self, settings: dict[str, object], random: Random) -> Algorithm:
        """The algorithm of one definition. Raises `ConfigError` (stage `build`)."""
        return self._make(settings, random)


@dataclass(frozen=True)
class NoSettings:
    """The settings of an algorithm that has none."""

    @classmethod
    def read(cls, fields: Fields) -> "NoSettings":  # noqa: ARG003 - reads none
        """Reads no field."""
        return cls()


def registration(
    name: str,
    read: Callable[[Fields], SettingsT],
    make: Callable[[SettingsT, Random], Algorithm],
    *,
    aliases: tuple[str, ...] = (),
    position: int = LAST,
    earlier: Registration | None = None,
) -> Registration:
    """Register an algorithm. `read` must read every field at each call; `make` may raise `ConfigError`.

    `earlier` is a form of a built-in algorithm for another release line; its aliases and position are not used.
    """

    def make_from(settings: dict[str, object], random: Random) -> Algorithm:
        fields = Fields(settings, "build")
        typed = read(fields)
        fields.check()
        return make(typed, random)

    return Registration(name, read, make_from, aliases, position, earlier)
