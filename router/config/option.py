"""Declares an option of a program as a dataclass field with flag, environment variable, type and help text.

Name and default of the option are those of the field; an option is declared only there. `command_line.py` uses `options_of` to parse
and to print the help (docs/operations.md, "Command line").
"""

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar, cast

from router.config.option_values import true_or_false

_KEY = "option"
_T = TypeVar("_T")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One option. `value_name` None = a switch; `parse` converts one text into a value or raises `ValueRefusedError`."""

    flag: str
    value_name: str | None
    parse: Callable[[str], Any]
    help: str
    section: str | None = None
    """The heading of `--help` above this option and those that follow it; None: that of the option before."""
    env: str | None = None
    added: bool = False
    """No counterpart in the reference router; the default keeps its behaviour."""
    later: bool = False
    """The reference has it in releases after the 0.11 line only."""
    repeats: bool = False
    ignored: bool = False
    """Known from other releases and without effect; a start that has it says so."""
    required: bool = False
    name: str = ""
    """Name of the field."""
    default: Any = None
    """The value if the option is not given; None for a required one."""

    @property
    def shown(self) -> str:
        """The option in usage errors: `--flag <NAME>`, or `--flag` for a switch."""
        return self.flag if self.value_name is None else f"{self.flag} <{self.value_name}>"

    @property
    def default_shown(self) -> str:
        """The default in the spelling of the command line; empty if the help shows none."""
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
    later: bool = False,
    repeats: bool = False,
    ignored: bool = False,
) -> _T:
    """A field for an option with a value. `repeats`: it may be given several times, and `parse` returns a tuple."""
    written = Option(
        flag=flag,
        value_name=value_name,
        parse=parse,
        section=section,
        help=help,
        env=env,
        added=added,
        later=later,
        repeats=repeats,
        ignored=ignored,
    )
    return dataclasses.field(default=default, metadata={_KEY: written})


def required_option(
    flag: str,
    value_name: str,
    parse: Callable[[str], _T],
    *,
    help: str,  # noqa: A002 - as above
    env: str | None = None,
    section: str | None = None,
) -> _T:
    """A field for an option that must be given, on the command line or in the variable `env`."""
    written = Option(
        flag=flag,
        value_name=value_name,
        parse=parse,
        section=section,
        help=help,
        env=env,
        required=True,
    )
    return cast("_T", dataclasses.field(metadata={_KEY: written}))


def switch(
    flag: str,
    *,
    help: str,  # noqa: A002 - as above
    env: str | None = None,
    added: bool = False,
    later: bool = False,
    ignored: bool = False,
) -> bool:
    """A field for an option without a value: off unless given. In the environment it is `true` or `false`."""
    written = Option(
        flag=flag,
        value_name=None,
        parse=true_or_false,
        help=help,
        env=env,
        added=added,
        later=later,
        ignored=ignored,
    )
    return dataclasses.field(default=False, metadata={_KEY: written})


def options_of(settings: type) -> tuple[Option, ...]:
    """The options declared in a dataclass, those of its bases first, each with name, default and section."""
    found: list[Option] = []
    section = None
    for field in dataclasses.fields(settings):
        written: Option = field.metadata[_KEY]
        section = written.section or section
        default = None if field.default is dataclasses.MISSING else field.default
        found.append(dataclasses.replace(written, name=field.name, default=default, section=section))
    return tuple(found)
