"""How one option of the router is written: a field of a dataclass that carries flag, environment variable, type and help.

The field's name and default are those of the dataclass; nothing about an option stands anywhere else. `cli.py` parses and
prints by `options_of` (docs/operations.md, "Command line").
"""

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar, cast

from router.config.option_values import true_or_false

_KEY = "option"
_T = TypeVar("_T")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One option. `value_name` None makes it a switch; `parse` turns one text into a value or raises `ValueRefusedError`."""

    flag: str
    value_name: str | None
    parse: Callable[[str], Any]
    help: str
    section: str | None = None
    """The heading of `--help` above this option and those that follow it; None: that of the option before."""
    env: str | None = None
    added: bool = False
    """No counterpart in the reference router; the default keeps its behaviour."""
    repeats: bool = False
    required: bool = False
    name: str = ""
    """The field that carries the value."""
    default: Any = None
    """The value without an option; None also for a required one."""

    @property
    def shown(self) -> str:
        """As usage errors name it: `--flag <NAME>`, or the bare switch."""
        return self.flag if self.value_name is None else f"{self.flag} <{self.value_name}>"

    @property
    def default_shown(self) -> str:
        """The default as one would write it; empty if there is nothing to tell."""
        if self.default is None or self.default == () or self.value_name is None:
            return ""
        return str(self.default).lower() if isinstance(self.default, bool) else str(self.default)


def option(
    flag: str,
    value_name: str,
    parse: Callable[[str], _T],
    *,
    default: _T,
    help: str,  # noqa: A002 - the word of every command line
    env: str | None = None,
    section: str | None = None,
    added: bool = False,
    repeats: bool = False,
) -> _T:
    """A field for an option with a value. `repeats`: it may be given several times, and `parse` returns a tuple for each."""
    written = Option(
        flag=flag,
        value_name=value_name,
        parse=parse,
        section=section,
        help=help,
        env=env,
        added=added,
        repeats=repeats,
    )
    return dataclasses.field(default=default, metadata={_KEY: written})


def required_option(
    flag: str,
    value_name: str,
    parse: Callable[[str], _T],
    *,
    help: str,  # noqa: A002 - as above
    section: str | None = None,
) -> _T:
    """A field for an option that must be given, on the command line."""
    written = Option(
        flag=flag,
        value_name=value_name,
        parse=parse,
        section=section,
        help=help,
        required=True,
    )
    return cast("_T", dataclasses.field(metadata={_KEY: written}))


def switch(
    flag: str,
    *,
    help: str,  # noqa: A002 - as above
    env: str | None = None,
    added: bool = False,
) -> bool:
    """A field for an option without a value: off unless given. In the environment it is `true` or `false`."""
    written = Option(
        flag=flag,
        value_name=None,
        parse=true_or_false,
        help=help,
        env=env,
        added=added,
    )
    return dataclasses.field(default=False, metadata={_KEY: written})


def options_of(settings: type) -> tuple[Option, ...]:
    """The options written in a dataclass, in its order, each with its name, its default and its section."""
    found: list[Option] = []
    section = None
    for field in dataclasses.fields(settings):
        written: Option = field.metadata[_KEY]
        section = written.section or section
        default = None if field.default is dataclasses.MISSING else field.default
        found.append(dataclasses.replace(written, name=field.name, default=default, section=section))
    return tuple(found)
