"""The exception for a value of `x-routing-method` that cannot be used. Source of the codes: docs/balancing.md, "Expressions"."""

from enum import StrEnum
from typing import Final

_QUOTED: Final = 80
"""Maximum number of characters of a client's text in a message."""


class MethodErrorCode(StrEnum):
    """The class of the error; clients see it in `x-stargate-error-code` and in the body."""

    MALFORMED_EXPRESSION = "malformed_expression"
    """The text breaks a rule of the format."""

    UNKNOWN_METHOD = "unknown_method"
    """No algorithm has this name; also of a value that is blank or is no text."""

    UNAVAILABLE = "unavailable"
    """The algorithm exists, but the configuration does not offer it for the model."""

    UNKNOWN_PARAMETER = "unknown_parameter"
    """No algorithm has such a parameter."""

    NOT_APPLICABLE = "not_applicable"
    """The parameter exists, but not for this algorithm."""

    INVALID_VALUE = "invalid_value"
    """The value has the wrong type or is out of range."""

    INERT_VALUE = "inert_value"
    """The value would turn the setting off, so the parameter would have no effect."""

    INERT_COMBINATION = "inert_combination"
    """The parameter has an effect only together with another setting, which is missing."""


class MethodError(ValueError):
    """The value of `x-routing-method` cannot be used: its class, and the byte offset of the cause in the value, if there is one.

    The message is for the client. It quotes at most 80 characters of the value.
    """

    def __init__(self, code: MethodErrorCode, message: str, position: int | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.position = position


def quoted(text: str) -> str:
    """`text` as a message quotes it: in single quotes, printable, cut if it is long."""
    shown = text if len(text) <= _QUOTED else f"{text[:_QUOTED]}..."
    return f"'{shown}'" if shown.isprintable() else ascii(shown)
