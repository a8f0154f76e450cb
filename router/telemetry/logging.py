"""Log lines: one event per line on stdout, as text or JSON, at the level in `RUST_LOG`.

    2026-01-05T10:20:30.123456Z  INFO load balancer config loaded default_lb=power-of-n model_overrides=0

Texts are quoted, except names that operators search for without quotes. In values that peers sent, control characters are
escaped and long texts cut, so that they cannot break a line or fill the disk. Fields with the name of a secret are masked.
The caller only renders the text; a thread writes it, so a closed or blocked pipe or a full disk loses lines and does not
block the event loop. The format is described in docs/operations.md, "Logs".
"""

import logging
import re
import sys
import time
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from enum import Enum
from typing import Any, Literal, TextIO

import msgspec
import structlog

from tunnel_protocol.observers.line_logger import LibraryLines, LineLoggerFactory
from tunnel_protocol.observers.line_writer import LineWriter
from tunnel_protocol.observers.sampler import SampleLines, Sampler, summary_event

_MESSAGES = frozenset({"error", "addr"})
"""Fields whose text is never quoted: the last field of a line, meant for reading."""

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
"""Fields that operators search for without quotes (`inference_server_id=w-1`); quoted only if not a plain name."""

_PROCESS = "stargate_id"
"""The field that tells which of several processes wrote a line; an event's own field of this name replaces it."""

_SECRET = ("authorization", "token", "secret", "password", "prompt", "cookie")
_MASKED = "<masked>"
_NUMBERS = frozenset((int, float))
_MAX_VALUE_CHARS = 2_000
_MAX_TRACE_CHARS = 20_000
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
    """The log levels of a filter expression: for the router's own lines and for those of libraries."""

    def __init__(self, own: int, libraries: int) -> None:
        self.own = own
        self.libraries = libraries

    @classmethod
    def of(cls, expression: str | None) -> "Levels":
        """Parse `info`, `debug`, `warn,stargate=debug`, ...; unset or invalid means `info`.

        Directives for other targets are accepted and ignored: these crates of the reference router do not exist here.
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
        # Libraries log at the global level, but not below `warning`; with a global `debug`, at `info`.
        libraries = max(everything if everything is not None else logging.WARNING, logging.INFO)
        return cls(own, max(libraries, logging.WARNING) if everything != logging.DEBUG else logging.INFO)


def set_up(
    form: Literal["text", "json"],
    environment: Mapping[str, str],
    out: TextIO | None = None,
    *,
    cache: bool = True,
    process: str | None = None,
) -> LineWriter | None:
    """Configure structlog and the standard library's logging for the process; `out` is stdout unless given.

    `process` is the id of one of several processes that write to the same stream: it is in every line (`stargate_id`).

    Returns the writer of the lines, to be closed at the end; None for an `out` without a file descriptor, as in tests.
    """
    stream = sys.stdout if out is None else out
    levels = Levels.of(environment.get("RUST_LOG"))
    colours = form == "text" and not environment.get("NO_COLOR") and stream.isatty()
    renderer = _Json(process) if form == "json" else _Text(colours, process)
    sampler = Sampler()
    writer = _writer_on(stream, renderer, sampler, shared=process is not None)
    structlog.configure(
        processors=[SampleLines(sampler, _no_reminder if writer is None else writer.remind), _Unfailing(renderer)],
        wrapper_class=structlog.make_filtering_bound_logger(levels.own),
        logger_factory=structlog.WriteLoggerFactory(stream) if writer is None else LineLoggerFactory(writer),
        cache_logger_on_first_use=cache,
    )
    root = logging.getLogger()
    root.handlers[:] = [LibraryLines()]
    root.setLevel(levels.libraries)
    # Warnings that libraries would print on stderr, where a blocked pipe could block the event loop.
    logging.captureWarnings(True)
    sys.unraisablehook = _unraisable
    return writer


def writer_in_use() -> LineWriter | None:
    """The writer that `set_up` created for this process; None if there is none."""
    factory = structlog.get_config()["logger_factory"]
    return factory.writer if isinstance(factory, LineLoggerFactory) else None


def flush(timeout_s: float) -> None:
    """Wait until the lines logged so far are written or lost, at most `timeout_s` seconds."""
    writer = writer_in_use()
    if writer is not None:
        writer.flush(timeout_s)


def _writer_on(stream: TextIO, form: "_Text | _Json", sampler: Sampler, *, shared: bool) -> LineWriter | None:
    try:
        descriptor = stream.fileno()
    except (OSError, ValueError):
        return None

    def lost_lines_reported(count: int) -> str:
        return form(None, "warning", {"event": f"{count} log lines were dropped", "dropped": count})

    def reminders() -> tuple[list[str], bool]:
        summaries, more = sampler.summaries()
        return [form(None, "warning", summary_event(summary)) for summary in summaries], more

    return LineWriter(descriptor, lost_lines_reported, name="log", reminders=reminders, shared=shared)


def _unraisable(problem: "sys.UnraisableHookArgs") -> None:
    error = problem.exc_value
    structlog.get_logger().error(
        problem.err_msg or "exception in a finalizer or callback",
        error=repr(problem.exc_type if error is None else error),
    )


def _no_reminder() -> None:
    """Does nothing: without a writer no summary of left-out lines is written."""


class FrequentLine:
    """An info line that is written at least once per request: in the same format as structlog's, at a third of the cost.

    Create it after `set_up`. If structlog is configured otherwise (in tests), structlog writes the line.
    """

    def __init__(self, event: str, *fields: str) -> None:
        self._event = event
        self._fields = fields
        self.enabled: bool = structlog.get_logger().bind().is_enabled_for(logging.INFO)
        """Whether the line is written; check it before the values are computed, so that a disabled line costs nothing."""
        configured = structlog.get_config()
        last = configured["processors"][-1]
        self._line = last.form.of_info(event, fields) if isinstance(last, _Unfailing) else None
        self._write = configured["logger_factory"]().info

    def write(self, *values: object) -> None:
        """Write the line with the values of its fields, in the order of the fields."""
        if not self.enabled:
            return
        if self._line is None:
            structlog.get_logger().info(self._event, **dict(zip(self._fields, values, strict=True)))
        else:
            self._write(self._line(values))


class _Unfailing:
    """The last processor: renders the line; if a value cannot be rendered, a line that says so."""

    def __init__(self, form: "_Text | _Json") -> None:
        self.form = form

    def __call__(self, logger: Any, method: str, event: MutableMapping[str, Any]) -> str:
        message = event.get("event", "")
        try:
            return self.form(logger, method, structlog.processors.format_exc_info(logger, method, event))
        except Exception as error:  # noqa: BLE001 - the methods of a value can raise anything
            shown = message if isinstance(message, str) else type(message).__name__
            return self.form(logger, method, {"event": shown, "not_shown_because": type(error).__name__})


class _Now:
    """The timestamp of a line; the part up to the second is rendered once a second."""

    def __init__(self) -> None:
        self._second = -1
        self._shown = ""

    def __call__(self) -> str:
        second, nanoseconds = divmod(time.time_ns(), 1_000_000_000)
        if second != self._second:
            self._shown = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
            self._second = second
        return f"{self._shown}.{nanoseconds // 1000:06d}Z"


class _Text:
    """Renders an event as a line of text."""

    def __init__(self, colours: bool, process: str | None = None) -> None:
        self._now = _Now()
        self._process = "" if process is None else f" {_PROCESS}={_value(process, _style(_PROCESS))}"
        self._levels = {
            method: f"{_COLOURS.get(method, '')}{level}\x1b[0m" if colours else level
            for method, level in _SHOWN.items()
        }

    def __call__(self, _logger: Any, method: str, event: MutableMapping[str, Any]) -> str:
        message = _escaped(str(event.pop("event", "")))
        trace = event.pop("exception", None)
        process = "" if _PROCESS in event else self._process
        fields = "".join(f" {key}={_value(value, _style(key))}" for key, value in event.items()) + process
        line = f"{self._now()} {self._levels.get(method, ' INFO')} {message}{fields}"
        return line if trace is None else f"{line}\n{_trace(str(trace))}"

    def of_info(self, event: str, fields: Sequence[str]) -> Callable[[Sequence[object]], str]:
        """A function that renders lines of one event from the values of its fields; the same text as `__call__`, faster."""
        now, head = self._now, f" {self._levels['info']} {_escaped(event)}"
        known = [(f" {name}=", style, style.harmless, style.quote) for name, style in _styles(fields)]
        process = "" if _PROCESS in fields else self._process

        def line(values: Sequence[object]) -> str:
            text = now() + head
            for (name, style, harmless, quote), value in zip(known, values, strict=True):
                if isinstance(value, str) and harmless(value):
                    text += f"{name}{quote}{value}{quote}"
                elif value is None or value.__class__ in _NUMBERS:
                    text += f"{name}{value}"
                else:
                    text += name + _value(value, style)
            return text + process

        return line


class _Json:
    """Renders an event as one JSON object."""

    def __init__(self, process: str | None = None) -> None:
        self._now = _Now()
        self._process: dict[str, Any] = {} if process is None else {_PROCESS: process}

    def __call__(self, _logger: Any, method: str, event: MutableMapping[str, Any]) -> str:
        message = str(event.pop("event", ""))
        document = {"timestamp": self._now(), "level": _SHOWN.get(method, " INFO").strip(), "message": message}
        document.update(self._process)
        document.update({key: _plain(value, _style(key)) for key, value in event.items()})
        return _encoded(document)

    def of_info(self, event: str, fields: Sequence[str]) -> Callable[[Sequence[object]], str]:
        """A function that renders lines of one event from the values of its fields; the same text as `__call__`, faster."""
        now, process = self._now, self._process
        known = _styles(fields)

        def line(values: Sequence[object]) -> str:
            document: dict[str, Any] = {"timestamp": now(), "level": "INFO", "message": event, **process}
            for (name, style), value in zip(known, values, strict=True):
                document[name] = _plain(value, style)
            return _encoded(document)

        return line


def _encoded(document: dict[str, Any]) -> str:
    try:
        return msgspec.json.encode(document).decode()
    except UnicodeEncodeError:
        # A lone surrogate (from a file, or from bytes of the command line) has no UTF-8 form; its escape is written.
        return msgspec.json.encode(_without_surrogates(document)).decode()


def _without_surrogates(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, Mapping):
        return {_without_surrogates(key): _without_surrogates(one) for key, one in value.items()}
    return value


class _Style(Enum):
    """How the text of a field is rendered, by the field's name. `harmless` is the pattern of texts that need no escaping."""

    QUOTED = ('"', r"[ !#-\[\]-~]{0,2000}")
    NAME = ("", r"[A-Za-z0-9_.:/@+~-]{1,2000}")
    """Without quotes if it is a plain name, else quoted."""
    MESSAGE = ("", r"[ -~]{0,2000}")
    """Without quotes."""
    SECRET = ("", r"(?!)")
    """Masked."""

    def __init__(self, quote: str, harmless: str) -> None:
        self.quote = quote
        self.harmless = re.compile(harmless).fullmatch


def _style(key: str) -> _Style:
    if key.lower().endswith(_SECRET):
        return _Style.SECRET
    if key in _MESSAGES:
        return _Style.MESSAGE
    return _Style.NAME if key in _NAMES else _Style.QUOTED


def _styles(fields: Sequence[str]) -> list[tuple[str, _Style]]:
    return [(name, _style(name)) for name in fields]


def _plain(value: Any, style: _Style) -> Any:
    if value.__class__ in _NUMBERS or value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(one, _style(str(key))) for key, one in value.items()}
    if isinstance(value, bytes):
        value = value.decode("utf-8", "backslashreplace")
    elif not isinstance(value, str):
        return _cut(str(value))
    return _MASKED if style is _Style.SECRET else _cut(value)


def _value(value: Any, style: _Style) -> str:
    # The exact type is tested first: it decides nearly every field, and this function is most of the cost of a line.
    kind = value.__class__
    if kind is str:
        return _text(value, style)
    if kind in _NUMBERS or value is None:
        return str(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        return (
            "{"
            + ", ".join(f"{_escaped(str(name))}: {_value(one, _style(str(name)))}" for name, one in value.items())
            + "}"
        )
    if isinstance(value, bytes):
        return _text(value.decode("utf-8", "backslashreplace"), style)
    return _text(value, style) if isinstance(value, str) else _escaped(str(value))


def _text(value: str, style: _Style) -> str:
    if style.harmless(value):
        return f"{style.quote}{value}{style.quote}"
    if style is _Style.SECRET:
        return _MASKED
    if style is _Style.MESSAGE:
        return _escaped(value)
    return '"' + _escaped(value).replace('"', r"\"") + '"'


def _trace(text: str) -> str:
    """The lines of a traceback; its last line may contain text that a peer sent."""
    if len(text) > _MAX_TRACE_CHARS:
        text = f"{text[: _MAX_TRACE_CHARS // 2]}\n...\n{text[-_MAX_TRACE_CHARS // 2 :]}"
    return "\n".join(
        line if line.isprintable() else line.encode("unicode_escape").decode() for line in text.split("\n")
    )


def _escaped(value: str) -> str:
    value = _cut(value)
    return value if value.isprintable() else value.encode("unicode_escape").decode()


def _cut(value: str) -> str:
    return value if len(value) <= _MAX_VALUE_CHARS else value[:_MAX_VALUE_CHARS] + f"... ({len(value)} characters)"
