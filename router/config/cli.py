"""The command line: strict parsing by the options of `Settings`, usage errors, and `--help`.

It does not use a library because compatibility with existing deployments needs stricter rules: no abbreviations, no option
twice, an empty environment variable counts as set, and error texts that operators search for (docs/operations.md,
"Command line").
"""

import shutil
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from router.config.option import Option
from router.config.option_values import ValueRefusedError
from router.config.settings import OPTIONS, Settings

_BY_FLAG = {option.flag: option for option in OPTIONS}
_REQUIRED = [option for option in OPTIONS if option.required]
_USAGE = "Usage: stargate [OPTIONS] " + " ".join(option.shown for option in _REQUIRED)


class UsageError(Exception):
    """The command line or the environment is not valid; `message` is for stderr, the exit code is 2."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class HelpRequested(Exception):  # noqa: N818 - asked for, not an error
    """`--help` or `-h` was found before any error."""


class VersionRequested(Exception):  # noqa: N818 - asked for, not an error
    """`--version` or `-V` was found before any error."""


def parse(arguments: Sequence[str], environment: Mapping[str, str]) -> Settings:
    """Parse arguments and environment into `Settings`.

    Raises `UsageError`, `HelpRequested` or `VersionRequested`.
    """
    given = _read(arguments)
    missing = [option for option in _REQUIRED if option.flag not in given]
    values: dict[str, Any] = {}
    for option in OPTIONS:
        texts, variable = given.get(option.flag), None
        if texts is None and option.env is not None and option.env in environment:
            texts, variable = [environment[option.env]], option.env
        if texts is None:
            continue  # the default of the field, or missing
        if option.repeats:
            values[option.name] = tuple(part for one in texts for part in _value(option, one, variable))
        else:
            values[option.name] = _value(option, texts[0], variable)
    if missing:
        lines = "".join(f"\n  {option.shown}" for option in missing)
        raise UsageError(f"the following required arguments were not provided:{lines}")
    return Settings(**values)


def settings_or_exit(arguments: Sequence[str], environment: Mapping[str, str], version: Callable[[], str]) -> Settings:
    """As `parse`, but exits instead of raising: 0 with help or `version` on stdout, 2 with the error on stderr."""
    try:
        return parse(arguments, environment)
    except HelpRequested:
        print(help_text(min(shutil.get_terminal_size((110, 24)).columns, 110)))
        sys.exit(0)
    except VersionRequested:
        print(f"stargate {version()}")
        sys.exit(0)
    except UsageError as error:
        print(f"error: {error.message}\n\n{_USAGE}\n\nFor more information, try '--help'.", file=sys.stderr)
        sys.exit(2)


def _read(arguments: Sequence[str]) -> dict[str, list[str]]:
    """Collect the texts given per flag; each is checked at once, so that the leftmost error is reported."""
    given: dict[str, list[str]] = {}
    words = iter(arguments)
    for word in words:
        if word == "--help" or (word.startswith("-h") and not word.startswith("--")):
            raise HelpRequested
        if word == "--version" or (word.startswith("-V") and not word.startswith("--")):
            raise VersionRequested
        flag, equals, value = word.partition("=")
        option = _BY_FLAG.get(flag)
        if option is None:
            raise UsageError(_unexpected(word if not word.startswith("--") else flag))
        if option.flag in given and not option.repeats:
            raise UsageError(f"the argument '{option.shown}' cannot be used multiple times")
        if option.value_name is None:
            if equals:
                raise UsageError(f"unexpected value '{value}' for '{option.flag}' found; no more were expected")
            value = "true"
        elif not equals:
            value = next(words, "--")
            if value.startswith("-") and value != "-":
                raise UsageError(_needs_value(option))
        _value(option, value)
        given.setdefault(option.flag, []).append(value)
    return given


def _unexpected(word: str) -> str:
    message = f"unexpected argument '{word}' found"
    near = get_close_matches(word, _BY_FLAG, n=1, cutoff=0.8)
    return f"{message}\n\n  tip: a similar argument exists: '{near[0]}'" if near else message


def _needs_value(option: Option) -> str:
    return f"a value is required for '{option.shown}' but none was supplied"


def _value(option: Option, given: str, variable: str | None = None) -> Any:
    """The value of the text `given` on the command line, or in the environment variable `variable`."""
    try:
        return option.parse(given)
    except ValueRefusedError as error:
        message = _refusal(option, given, error)
        if variable is not None:
            message = f"{message}\n\n  it comes from the environment variable {variable}"
        raise UsageError(message) from None


def _refusal(option: Option, given: str, error: ValueRefusedError) -> str:
    if error.unsupported:
        return f"the argument '{option.shown}' is not supported yet: {error.reason}"
    if error.needs_value and option.value_name is not None:
        return _needs_value(option)
    message = f"invalid value '{given}' for '{option.shown}'"
    if error.choices:
        return f"{message}\n  [possible values: {', '.join(error.choices)}]"
    return f"{message}: {error.reason}" if error.reason else message


def help_text(width: int = 100) -> str:
    """The help text, wrapped to `width` columns."""
    out = [
        "Routes OpenAI-style requests from an API gateway to GPU workers through QUIC tunnels.",
        "",
        _USAGE,
        "",
        "A worker dials in (or is dialled), registers its models over gRPC, and every request becomes one stream on its tunnel.",
        "The smallest useful start, on one machine, with workers dialling in:",
        "",
        "  stargate --stargate-id r0 --advertise-addr 127.0.0.1:50071 --stargate-discovery-dns-name localhost \\",
        "      --disable-dns-discovery --backend-connectivity=reverse --reverse-tunnel-listen-addr 0.0.0.0:50072 \\",
        "      --advertised-hostname-template 127.0.0.1 --quic-insecure",
        "",
        "Values are given as `--name value` or `--name=value`; the command line wins over the environment. Options marked",
        "with + are additions of this program.",
    ]
    for section in dict.fromkeys(option.section for option in OPTIONS):
        out += ["", f"{section}:"]
        for option in OPTIONS:
            if option.section == section:
                out += _help_entry(option, width)
    out += ["", "Help:", "      -h, --help", "          Show this text."]
    out += ["      -V, --version", "          Show the version of this build.", ""]
    out += [
        "Exit codes: 0 after a clean drain, 1 for a failed start, a failed part or a drain that took too long, 2 for usage.",
        "Environment: RUST_LOG sets the log level (trace, debug, info, warn, error, off; info if unset).",
    ]
    return "\n".join(out)


def _help_entry(option: Option, width: int) -> list[str]:
    notes = []
    if option.required:
        notes.append("[required]")
    if option.env:
        notes.append(f"[env: {option.env}]")
    if option.default_shown:
        notes.append(f"[default: {option.default_shown}]")
    mark = "  + " if option.added else "      "
    body = textwrap.wrap(" ".join([option.help, *notes]), width - 10, break_on_hyphens=False)
    return [f"{mark}{option.shown}", *(f"          {line}" for line in body)]
