"""A command line: strict parsing by the options of a settings class, usage errors, and `--help`.

It does not use a library because compatibility with existing deployments needs stricter rules: no abbreviations, no option
twice, an empty environment variable counts as set, and error texts that operators search for (docs/operations.md,
"Command line").
"""

import shutil
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, Generic, TypeVar

from router.config.option import Option, options_of
from router.config.option_values import ValueRefusedError

S = TypeVar("S")


class UsageError(Exception):
    """The command line or the environment is not valid; `message` is for stderr, the exit code is 2."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class HelpRequested(Exception):  # noqa: N818 - asked for, not an error
    """`--help` or `-h` was found before any error."""


class VersionRequested(Exception):  # noqa: N818 - asked for, not an error
    """`--version` or `-V` was found before any error."""


class CommandLine(Generic[S]):
    """The command line of one program, whose options are the fields of `settings` (see `router.config.option`)."""

    def __init__(
        self,
        settings: type[S],
        program: str,
        *,
        about: str,
        introduction: Sequence[str],
        knows_version: Callable[[Mapping[str, list[str]], Mapping[str, str]], bool] = lambda _given, _environment: True,
    ) -> None:
        """`about` is the first line of the help, `introduction` the lines between the usage and the options.

        `knows_version` says of the texts per flag left of `--version`, and of the environment, whether that is an option.
        """
        self._knows_version = knows_version
        self._settings = settings
        self._program = program
        self._about = about
        self._introduction = introduction
        self.options: tuple[Option, ...] = options_of(settings)
        """The options in the order of `--help`."""
        self._by_flag = {option.flag: option for option in self.options}
        self._required = [option for option in self.options if option.required]
        self._usage = f"Usage: {program} [OPTIONS] " + " ".join(option.shown for option in self._required)

    def parse(self, arguments: Sequence[str], environment: Mapping[str, str]) -> S:
        """Parse arguments and environment. Raises `UsageError`, `HelpRequested` or `VersionRequested`."""
        given = self._read(arguments, environment)
        values: dict[str, Any] = {}
        missing: list[Option] = []
        for option in self.options:
            texts, variable = given.get(option.flag), None
            if texts is None and option.env is not None and option.env in environment:
                texts, variable = [environment[option.env]], option.env
            if texts is None:
                if option.required:
                    missing.append(option)
                continue  # the default of the field, or missing
            if option.repeats:
                values[option.name] = tuple(part for one in texts for part in _value(option, one, variable))
            else:
                values[option.name] = _value(option, texts[0], variable)
        if missing:
            lines = "".join(f"\n  {option.shown}" for option in missing)
            raise UsageError(f"the following required arguments were not provided:{lines}")
        return self._settings(**values)

    def replaced(self, arguments: Sequence[str], values: Mapping[str, str | None]) -> list[str]:
        """Valid `arguments` with other values for some options: a flag with None is left out, and any other flag added."""
        kept: list[str] = []
        words = iter(arguments)
        for word in words:
            flag, equals, _ = word.partition("=")
            taken = [word] if equals or self._by_flag[flag].value_name is None else [word, next(words)]
            if flag not in values:
                kept += taken
        return kept + [f"{flag}={value}" for flag, value in values.items() if value is not None]

    def settings_or_exit(
        self, arguments: Sequence[str], environment: Mapping[str, str], version: Callable[[], str]
    ) -> S:
        """As `parse`, but exits instead of raising: 0 with help or `version` on stdout, 2 with the error on stderr."""
        try:
            return self.parse(arguments, environment)
        except HelpRequested:
            print(self.help_text(min(shutil.get_terminal_size((110, 24)).columns, 110)))
            sys.exit(0)
        except VersionRequested:
            print(f"{self._program} {version()}")
            sys.exit(0)
        except UsageError as error:
            print(f"error: {error.message}\n\n{self._usage}\n\nFor more information, try '--help'.", file=sys.stderr)
            sys.exit(2)

    def help_text(self, width: int = 100) -> str:
        """The help text, wrapped to `width` columns."""
        out = [
            self._about,
            "",
            self._usage,
            "",
            *self._introduction,
            "",
            "Values are given as `--name value` or `--name=value`; the command line wins over the environment. Options marked",
            "with + are additions of this program; those with * came with later releases of the reference than 0.11.",
        ]
        for section in dict.fromkeys(option.section for option in self.options):
            out += ["", f"{section}:"]
            for option in self.options:
                if option.section == section:
                    out += _help_entry(option, width)
        out += ["", "Help:", "      -h, --help", "          Show this text."]
        out += ["      -V, --version", "          Show the version of this build.", ""]
        out += [
            "Exit codes: 0 after a clean drain, 1 for a failed start, a failed part or a drain that took too long, 2 for usage.",
            "Environment: RUST_LOG sets the log level (trace, debug, info, warn, error, off; info if unset).",
        ]
        return "\n".join(out)

    def _read(self, arguments: Sequence[str], environment: Mapping[str, str]) -> dict[str, list[str]]:
        """Collect the texts given per flag; each is checked at once, so that the leftmost error is reported."""
        given: dict[str, list[str]] = {}
        words = iter(arguments)
        for word in words:
            if word == "--help" or (word.startswith("-h") and not word.startswith("--")):
                raise HelpRequested
            asks_for_version = word == "--version" or (word.startswith("-V") and not word.startswith("--"))
            if asks_for_version and self._knows_version(given, environment):
                raise VersionRequested
            flag, equals, value = word.partition("=")
            option = self._by_flag.get(flag)
            if option is None:
                raise UsageError(self._unexpected(word if not word.startswith("--") else flag))
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

    def _unexpected(self, word: str) -> str:
        message = f"unexpected argument '{word}' found"
        near = get_close_matches(word, self._by_flag, n=1, cutoff=0.8)
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


def _help_entry(option: Option, width: int) -> list[str]:
    notes = []
    if option.required:
        notes.append("[required]")
    if option.env:
        notes.append(f"[env: {option.env}]")
    if option.default_shown:
        notes.append(f"[default: {option.default_shown}]")
    mark = "  + " if option.added else "  * " if option.later else "      "
    body = textwrap.wrap(" ".join([option.help, *notes]), width - 10, break_on_hyphens=False)
    return [f"{mark}{option.shown}", *(f"          {line}" for line in body)]
