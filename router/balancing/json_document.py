"""Strict parser of JSON documents of configuration and secrets; every failure is a `JsonError` with a position.

Stricter than `json`: no NaN, infinities, byte-order mark or lone surrogates (which cannot be logged, hashed or sent), and
limits of size, depth and number of values. The order of keys and repeated keys are kept.
"""

import json
import math
import re

from tunnel_protocol.limit import Limit

DOCUMENT = Limit("json.document", bytes=4 << 20, pieces=500_000)
"""Bytes of a document, and number of values (keys included) in it."""

DEPTH = Limit("json.depth", pieces=64)
"""Depth of nested objects and lists."""

_NUMBER_DIGITS = 400
"""Maximum digits of an integer; with more it is larger than every double."""

_STRUCTURE = re.compile(r'"(?:[^"\\]|\\.)*+"?|[\[\]{},:]', re.DOTALL)


class JsonError(ValueError):
    """The text is not valid. `reason` is what is wrong, `place` the position (line and column, byte, or path)."""

    def __init__(self, reason: str, place: str = "") -> None:
        super().__init__(f"{reason} at {place}" if place else reason)
        self.reason = reason
        self.place = place


class JsonObject(list[tuple[str, object]]):
    """An object as its (key, value) pairs, in order, repeated keys included."""

    def last(self) -> dict[str, object]:
        """The object as a dict; of repeated keys the last one is used."""
        return dict(self)


def parse(content: bytes) -> object:
    """Parse a document. Raises only `JsonError`."""
    if len(content) > (DOCUMENT.bytes or 0):
        raise JsonError(f"larger than {DOCUMENT.bytes} bytes")
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise JsonError(f"not UTF-8: {error.reason}", f"byte {error.start}") from None
    if text.startswith("\ufeff"):
        raise JsonError("starts with a byte-order mark", "line 1 column 1")
    _check_structure(text)
    try:
        document = json.loads(
            text, object_pairs_hook=JsonObject, parse_constant=_refuse, parse_float=_finite, parse_int=_integer
        )
    except json.JSONDecodeError as error:
        raise JsonError(error.msg, f"line {error.lineno} column {error.colno}") from None
    _check_texts(document)
    return document


def _check_structure(text: str) -> None:
    """Limit depth and number of values before anything is built; invalid JSON is found by the parser."""
    depth = deepest = values = 0
    most_values, most_depth = DOCUMENT.pieces or 0, DEPTH.pieces or 0
    for found in _STRUCTURE.finditer(text):
        first = text[found.start()]
        if first in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif first in "]}":
            depth -= 1
        elif first in ",:":
            values += 1
        if deepest > most_depth or values > most_values:
            line = text.count("\n", 0, found.start()) + 1
            column = found.start() - text.rfind("\n", 0, found.start())
            reason = "nested too deeply" if deepest > most_depth else f"more than {most_values} values"
            raise JsonError(reason, f"line {line} column {column}")


def _check_texts(document: object) -> None:
    """Raise `JsonError` if a text of the document has a lone surrogate."""
    left: list[tuple[str, object]] = [("", document)]
    while left:
        path, value = left.pop()
        if isinstance(value, str):
            if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
                raise JsonError("lone surrogate in a text", path or "the document")
        elif isinstance(value, JsonObject):
            for key, entry in value:
                if not key.isascii() and any("\ud800" <= character <= "\udfff" for character in key):
                    raise JsonError("lone surrogate in a key", f"an object at {path or 'the top'}")
                if isinstance(entry, str | list):
                    left.append((f"{path}.{key[:40]}" if path else key[:40], entry))
        elif isinstance(value, list):
            left.extend(
                (f"{path}[{index}]", entry) for index, entry in enumerate(value) if isinstance(entry, str | list)
            )


def _refuse(name: str) -> float:
    raise JsonError(f"number out of range: {name}")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise JsonError(f"number out of range: {text[:40]}")
    return value


def _integer(text: str) -> int:
    if len(text) > _NUMBER_DIGITS:
        raise JsonError(f"number out of range: {text[:40]}...")
    return int(text)
