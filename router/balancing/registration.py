"""How an algorithm is announced: its name, its settings and how it is made. See docs/balancing.md, "Adding an algorithm".

A built-in algorithm and one of an installed package announce themselves alike; the former by a module of
`router.balancing.algorithms`, the latter by an entry point.
"""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import TypeVar

from router.balancing.algorithm import Algorithm, MakeAlgorithm
from router.balancing.fields import Fields

SettingsT = TypeVar("SettingsT")

LAST = 1_000
"""The position of algorithms without one of their own."""


class Registration:
    """An algorithm with declared settings, made by `registration`. May be called as any `MakeAlgorithm`."""

    __slots__ = ("_make", "_read", "aliases", "fields", "name", "position")

    def __init__(
        self,
        name: str,
        read: Callable[[Fields], object],
        make: MakeAlgorithm,
        aliases: tuple[str, ...],
        position: int,
    ) -> None:
        self._read = read
        self._make = make
        self.name = name
        """Canonical name: in configurations, in the method header, in metrics. An entry point's name takes precedence."""
        self.aliases = aliases
        """Other spellings."""
        self.position = position
        """Where it stands in the list of names that an error message gives, lower first."""
        nothing = Fields({})
        read(nothing)
        self.fields = frozenset(nothing.names)
        """Names of its settings; a definition with any other is refused."""

    def check(self, fields: Fields) -> None:
        """Read the settings; `fields.check()` then raises what is wrong with them."""
        self._read(fields)

    def __call__(self, settings: dict[str, object], random: Random) -> Algorithm:
        """The algorithm of one definition. Raises `ConfigError` (stage `build`)."""
        return self._make(settings, random)


@dataclass(frozen=True)
class NoSettings:
    """The settings of an algorithm without any."""

    @classmethod
    def read(cls, fields: Fields) -> "NoSettings":  # noqa: ARG003 - reads none
        """Nothing to read."""
        return cls()


def registration(
    name: str,
    read: Callable[[Fields], SettingsT],
    make: Callable[[SettingsT, Random], Algorithm],
    *,
    aliases: tuple[str, ...] = (),
    position: int = LAST,
) -> Registration:
    """Announce an algorithm. `read` asks for every field there is, each time; `make` may raise `ConfigError`."""

    def make_from(settings: dict[str, object], random: Random) -> Algorithm:
        fields = Fields(settings, "build")
        typed = read(fields)
        fields.check()
        return make(typed, random)

    return Registration(name, read, make_from, aliases, position)
