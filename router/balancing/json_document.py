"""Reads a JSON document without the liberties of the standard parser: no NaN, no infinities, no BOM; key order and repeats kept."""

import json
import math


class JsonError(ValueError):
    """The text is not the JSON we accept."""


class JsonObject(list[tuple[str, object]]):
    """An object as its (key, value) pairs, in order, repeats included."""

    def last(self) -> dict[str, object]:
        """As a dict; of repeated keys the last one counts."""
        return dict(self)


def parse(content: bytes) -> object:
    """The document. Raises `JsonError`."""
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        message = f"not UTF-8: {error}"
        raise JsonError(message) from None
    if text.startswith("\ufeff"):
        message = "starts with a byte-order mark"
        raise JsonError(message)
    try:
        return json.loads(text, object_pairs_hook=JsonObject, parse_constant=_refuse, parse_float=_finite)
    except RecursionError:
        message = "nested too deeply"
        raise JsonError(message) from None
    except ValueError as error:
        raise JsonError(str(error)) from None


def _refuse(name: str) -> float:
    message = f"number out of range: {name}"
    raise JsonError(message)


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        message = f"number out of range: {text}"
        raise JsonError(message)
    return value
