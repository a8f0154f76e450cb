"""Log lines: one event a line on stdout, for people or as JSON, at the level that `RUST_LOG` names.

    2026-01-05T10:20:30.123456Z  INFO load balancer config loaded default_lb=power-of-n model_overrides=0

Texts are quoted, except names that operators search for bare. What peers sent can neither break a line nor fill the
disk: control characters are escaped and long values cut. Names that could carry secrets are masked, whoever logs them.
The format is described in docs/operations.md, "Logs".
"""

import logging
import re
import sys
from collections.abc import Mapping, MutableMapping
from datetime import UTC, datetime
from typing import Any, Literal, TextIO

import msgspec
import structlog

_MESSAGES = frozenset({"error", "addr"})
"""Fields whose text stands without quotes, whatever it is: the last of a line, and for reading."""

_NAMES = frozenset(
    {
        *(
            "default_lb",
            "hash",
            "stargate_id",
            "inference_server_id",
            "inference_server_url",
            "cluster_id",
            "routing_key",
        ),
        *(
            "model_id",
            "requested_algorithm",
            "routing_algorithm",
            "target_pod",
            "target_addr",
            "dns_name",
            "advertise_addr",
        ),
    }
)
"""Fields that operators search for without quotes (`inference_server_id=w-1`); quoted only if they are no plain name."""

_PLAIN = re.compile(r"[A-Za-z0-9_.:/@+~-]+")
_SECRET = ("authorization", "token", "secret", "password", "prompt", "cookie")
_MAX_VALUE_CHARS = 2_000
_LEVELS = {
    "trace": logging.DEBUG,
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warn": logging.WARNING,
    "error": logging.ERROR,
    "off": logging.CRITICAL + 10,
    "5": logging.DEBUG,
    "4": logging.DEBUG,
    "3": logging.INFO,
    "2": logging.WARNING,
    "1": logging.ERROR,
    "0": logging.CRITICAL + 10,
}
_OURS = ("stargate", "router", "llm_request_router")
_SHOWN = {
    "debug": "DEBUG",
    "info": " INFO",
    "warning": " WARN",
    "error": "ERROR",
    "critical": "ERROR",
    "exception": "ERROR",
}
_COLOURS = {"debug": "\x1b[34m", "info": "\x1b[32m", "warning": "\x1b[33m", "error": "\x1b[31m", "critical": "\x1b[31m"}


class Levels:
    """What a filter expression says: the level of our own lines and of the libraries'."""

    def __init__(self, own: int, libraries: int) -> None:
        self.own = own
        self.libraries = libraries

    @classmethod
    def of(cls, expression: str | None) -> "Levels":
        """Read `info`, `debug`, `warn,stargate=debug`, ...; unset or not understood means `info`.

        Directives for other targets are accepted and have no effect: their crates do not exist here.
        """
        own: int | None = None
        everything: int | None = None
        for directive in (expression or "").split(","):
            target, equals, level = directive.strip().rpartition("=")
            number = _LEVELS.get(level.strip().lower())
            if directive.strip() and number is None and not (equals or directive.strip() in _OURS):
                return cls(logging.INFO, logging.WARNING)
            if not equals:
                everything = number if number is not None else everything
                own = logging.DEBUG if directive.strip() in _OURS else own
            elif target.strip() in _OURS and number is not None:
                own = number
        if own is None:
            own = logging.INFO if everything is None else everything
        # Libraries speak up from the level asked for, but never below warnings unless debugging was asked for globally.
        libraries = max(everything if everything is not None else logging.WARNING, logging.INFO)
        return cls(own, max(libraries, logging.WARNING) if everything != logging.DEBUG else logging.INFO)


def set_up(
    form: Literal["text", "json"], environment: Mapping[str, str], out: TextIO | None = None, *, cache: bool = True
) -> None:
    """Configure structlog and the standard library's logging for the whole process; `out` is stdout unless given."""
    stream = sys.stdout if out is None else out
    levels = Levels.of(environment.get("RUST_LOG"))
    colours = form == "text" and not environment.get("NO_COLOR") and stream.isatty()
    structlog.configure(
        processors=[_mask, structlog.processors.format_exc_info, _Json() if form == "json" else _Text(colours)],
        wrapper_class=structlog.make_filtering_bound_logger(levels.own),
        logger_factory=structlog.PrintLoggerFactory(stream),
        cache_logger_on_first_use=cache,
    )
    root = logging.getLogger()
    root.handlers[:] = [_Bridge()]
    root.setLevel(levels.libraries)


class _Bridge(logging.Handler):
    """Lines of libraries (asyncio, grpc, ...) come out like ours, with the logger's name as a field."""

    def emit(self, record: logging.LogRecord) -> None:
        level = (
            "error" if record.levelno >= logging.ERROR else "warning" if record.levelno >= logging.WARNING else "info"
        )
        fields: dict[str, Any] = {"logger": record.name}
        if record.exc_info:
            fields["exc_info"] = record.exc_info
        getattr(structlog.get_logger(), level)(record.getMessage(), **fields)


def _mask(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    for key in event:
        if key.lower().endswith(_SECRET) and isinstance(event[key], (str, bytes)):
            event[key] = "<masked>"
    return event


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


class _Text:
    """The line for people."""

    def __init__(self, colours: bool) -> None:
        self._colours = colours

    def __call__(self, _logger: Any, method: str, event: MutableMapping[str, Any]) -> str:
        message = _escaped(str(event.pop("event", "")))
        trace = event.pop("exception", None)
        level = _SHOWN.get(method, " INFO")
        if self._colours:
            level = f"{_COLOURS.get(method, '')}{level}\x1b[0m"
        fields = "".join(f" {key}={_value(key, value)}" for key, value in event.items())
        line = f"{_now()} {level} {message}{fields}"
        return line if trace is None else f"{line}\n{trace}"


class _Json:
    """The same event as one JSON object."""

    def __call__(self, _logger: Any, method: str, event: MutableMapping[str, Any]) -> str:
        message = str(event.pop("event", ""))
        level = _SHOWN.get(method, " INFO").strip()
        document = {"timestamp": _now(), "level": level, "message": message}
        document.update({key: _plain(value) for key, value in event.items()})
        return msgspec.json.encode(document).decode()


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    return _cut(value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value))


def _value(key: str, value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None or isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name}: {_value(str(name), one)}" for name, one in value.items()) + "}"
    if isinstance(value, bytes):
        value = value.decode("utf-8", "backslashreplace")
    if isinstance(value, str) and key not in _MESSAGES and not (key in _NAMES and _PLAIN.fullmatch(value)):
        return '"' + _escaped(value).replace('"', r"\"") + '"'
    return _escaped(str(value))


def _escaped(value: str) -> str:
    value = _cut(value)
    return value if value.isprintable() else value.encode("unicode_escape").decode()


def _cut(value: str) -> str:
    return value if len(value) <= _MAX_VALUE_CHARS else value[:_MAX_VALUE_CHARS] + f"... ({len(value)} characters)"
