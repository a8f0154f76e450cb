"""All of one row, and what to ask the router about it."""

import json
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import msgspec

from router.operators.explain_command import render_text
from router.operators.live_document import Live, Request
from router.top.figures import UNKNOWN, time_of_day
from router.top.printable import printable
from router.top.spans import Line, Role, Span
from router.top.tables import Table

_MAX_TEXT: Final = 2_000
"""Characters of one value, or of one line of an explanation."""

Query = tuple[tuple[str, str], ...]


class Question(NamedTuple):
    """A query to `/api/v1/explain`."""

    query: Query
    about: str
    """What is asked, in words."""


def fields(row: msgspec.Struct) -> list[Line]:
    """All members of `row`, by the names of docs/api.md, one on a line."""
    found: Mapping[str, Any] = msgspec.structs.asdict(row)
    width = max(map(len, found))
    return [[Span(f"{name:<{width}}  ", Role.LABEL), Span(_value(name, value))] for name, value in found.items()]


def question(table: Table, row: Any, live: Live) -> Question | None:
    """What `explain` is asked for `row`; None for rows without a model."""
    several = len(live.state.router.processes) > 1
    if isinstance(row, Request):
        asked = [("model", row.model), ("routing_key", row.routing_key or ""), ("method", row.requested_method)]
        asked += [("input_tokens", str(row.input_tokens)), ("priority", str(row.priority))]
        if several:
            asked.append(("process", row.process))
        about = "The same request, if it came now"
    elif table.name == "workers":
        models = row.models
        asked = [("model", models[0] if models else ""), ("routing_key", row.routing_key or "")]
        about = "A request for its first model, if it came now"
    else:
        asked = [("model", getattr(row, "model", "")), ("routing_key", getattr(row, "routing_key", None) or "")]
        about = "A request for it, if it came now"
    if not dict(asked)["model"]:
        return None
    return Question(tuple((name, value) for name, value in asked if value), about)


def explanation(document: object) -> list[Line]:
    """The answer of `/api/v1/explain` as lines."""
    try:
        text = render_text(document)  # type: ignore[arg-type]
    except (KeyError, TypeError, ValueError, AttributeError):
        # A later version may say it another way; then it is shown as it is.
        text = json.dumps(document, indent=2)
    return [[Span(printable(line[:_MAX_TEXT]))] for line in text.rstrip("\n").split("\n")]


def outcome(answer: list[Line]) -> Line:
    """The line of an explanation that says what is chosen."""
    return next((line for line in reversed(answer) if line and line[0].text.startswith("=>")), [Span("(see below)")])


def _value(name: str, value: object) -> str:
    if value is None:
        return UNKNOWN
    if isinstance(value, float):
        shown = f"{value:.6g}"
        return f"{time_of_day(value)} ({value:.3f})" if name == "at" else shown
    if isinstance(value, list):
        value = ", ".join(map(str, value))
    text = str(value)
    return printable(text[:_MAX_TEXT]) + ("…" if len(text) > _MAX_TEXT else "")
