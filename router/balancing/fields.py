"""Typed access to the settings of one definition."""

from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import TypeVar

from router.balancing.config_error import ConfigError
from router.balancing.json_document import JsonObject
from tunnel_protocol.limit import Limit
from tunnel_protocol.unsigned import MAX_U64

DefaultT = TypeVar("DefaultT")


class FieldKind(StrEnum):
    """How a field is read, which is the type of its value."""

    UNSIGNED = "an unsigned integer"
    NUMBER = "a number"
    BOOLEAN = "a boolean"
    TEXT = "a string"
    CHOICE = "one of several strings"


class Fields:
    """The settings, read by name and type. An absent field, or null where that is allowed, reads as its default.

    A field of the wrong type reads as its default and is recorded; `check` raises. So the reported error is that of the
    field that is first in the document, independent of the order in which an algorithm reads them.
    """

    def __init__(self, values: Mapping[str, object], stage: str = "parse") -> None:
        self._values = values
        self._stage = stage
        self._wrong: dict[str, str] = {}
        self._refused: list[str] = []
        self.kinds: dict[str, FieldKind] = {}
        """The fields that have been read, and how."""

    def unsigned(
        self, name: str, default: DefaultT, *, nullable: bool = True, limit: Limit | None = None
    ) -> int | DefaultT:
        """An integer from 0 to 2**64 - 1, at most `limit.pieces` if there is a limit."""
        if not self._is_given(name, FieldKind.UNSIGNED, nullable=nullable):
            return default
        value = self._values[name]
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MAX_U64:
            self._wrong_type(name, "an unsigned integer")
            return default
        if limit is not None and value > (limit.pieces or 0):
            self._wrong[name] = f"{name} must be at most {limit.pieces}, got {value}"
            return default
        return value

    def number(self, name: str, default: DefaultT) -> float | DefaultT:
        """A number that fits into a double."""
        if not self._is_given(name, FieldKind.NUMBER):
            return default
        value = self._values[name]
        if isinstance(value, bool) or not isinstance(value, int | float):
            self._wrong_type(name, "a number")
            return default
        try:
            return float(value)
        except OverflowError:
            self._wrong[name] = f"number out of range for `{name}`"
            return default

    def boolean(self, name: str) -> bool:
        """A boolean; False by default."""
        if not self._is_given(name, FieldKind.BOOLEAN):
            return False
        value = self._values[name]
        if isinstance(value, bool):
            return value
        self._wrong_type(name, "a boolean")
        return False

    def text(self, name: str, *, nullable: bool = True) -> str | None:
        """A string; None if absent."""
        if not self._is_given(name, FieldKind.TEXT, nullable=nullable):
            return None
        value = self._values[name]
        if isinstance(value, str):
            return value
        self._wrong_type(name, "a string")
        return None

    def choice(self, name: str, among: Iterable[str], default: DefaultT) -> str | DefaultT:
        """One of several strings; null is not allowed."""
        value = self.text(name, nullable=False)
        self.kinds[name] = FieldKind.CHOICE
        if value is None:
            return default
        if value not in among:
            expected = ", ".join(f"`{one}`" for one in among)
            self._wrong[name] = f"unknown variant `{value}`, expected one of {expected}"
            return default
        return value

    def refuse(self, message: str) -> None:
        """Record an error in values of the right types; reported if no type is wrong."""
        self._refused.append(message)

    def check(self) -> None:
        """Raise `ConfigError` for the first error in the fields that were read."""
        for name in self._values:
            if name in self._wrong:
                raise ConfigError(self._wrong[name], self._stage)
        for message in self._refused:
            raise ConfigError(message, self._stage)

    def _is_given(self, name: str, kind: FieldKind, *, nullable: bool = True) -> bool:
        self.kinds[name] = kind
        return name in self._values and not (nullable and self._values[name] is None)

    def _wrong_type(self, name: str, expected: str) -> None:
        self._wrong[name] = f"invalid type: {type_name(self._values[name])}, expected {expected} for `{name}`"


def type_name(value: object) -> str:
    """The name of a JSON value's type in error messages."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return f"boolean `{str(value).lower()}`"
    if isinstance(value, int):
        return f"integer `{value}`"
    if isinstance(value, float):
        return f"floating point `{value}`"
    if isinstance(value, str):
        return f'string "{value}"'
    return "map" if isinstance(value, JsonObject) else "sequence"
