"""Parses a routing expression, `algorithm;parameter=value;...`: an RFC 8941 Item with parameters, narrowed.

Sans-I/O, and linear in the length of the text. Knows no algorithm and no parameter; `expression_settings` does. Format:
docs/balancing.md, "Expressions".
"""

import re
from enum import StrEnum
from typing import Final, NamedTuple

from router.balancing.method_error import MethodError, MethodErrorCode, quoted
from tunnel_protocol.limit import Limit

EXPRESSION: Final = Limit("policy.expression", bytes=1024, pieces=32)
"""Bytes of an expression, and number of its parameters."""

_MAX_BYTES: Final = EXPRESSION.bytes or 0
_MAX_PARAMETERS: Final = EXPRESSION.pieces or 0

_INTEGER_DIGITS: Final = 15
_WHOLE_DIGITS: Final = 12
_FRACTION_DIGITS: Final = 3

_NOT_PRINTABLE: Final = re.compile(rb"[^\x20-\x7e]").search
_METHOD: Final = re.compile(rb"[A-Za-z][A-Za-z0-9_-]*+").match
_NAME: Final = re.compile(rb"[a-z][a-z0-9_]*+").match
_NUMBER: Final = re.compile(rb"-?+([0-9]++)(?:(\.)([0-9]*+))?+").match
_TOKEN: Final = re.compile(rb"[A-Za-z*][A-Za-z0-9!#$%&'*+.^_`|~:/-]*+").match
# A semicolon is valid in a string of RFC 8941, but not here; it is matched so that the error can name it.
_STRING: Final = re.compile(rb'"((?:[\x20\x21\x23-\x5b\x5d-\x7e]|\\["\\])*+)"').match
_ESCAPE: Final = re.compile(r"\\(.)").sub
_TO_ESCAPE: Final = re.compile(r'(["\\])').sub


class ValueKind(StrEnum):
    """The type of a value in RFC 8941, section 3.3."""

    INTEGER = "integer"
    DECIMAL = "decimal"
    TOKEN = "token"  # noqa: S105 - a kind of value
    STRING = "string"


class Parameter(NamedTuple):
    """One parameter of an expression."""

    name: str
    kind: ValueKind
    text: str
    """The value as it is written; of a string what is between its quotes, without escapes."""
    position: int
    """Byte offset of the name in the text of the expression."""
    value_position: int
    """Byte offset of the value."""

    def __str__(self) -> str:
        """The parameter in the format."""
        if self.kind is ValueKind.STRING:
            escaped = _TO_ESCAPE(r"\\\1", self.text)
            return f'{self.name}="{escaped}"'
        return f"{self.name}={self.text}"


class Expression(NamedTuple):
    """A parsed expression; `str` prints it in the format, which parses to an equal one but for positions."""

    method: str
    """The name of the algorithm as it is written."""
    position: int
    """Byte offset of `method`."""
    parameters: tuple[Parameter, ...]

    def __str__(self) -> str:
        """The expression in the format."""
        return ";".join([self.method, *[str(parameter) for parameter in self.parameters]])


def parse_expression(value: bytes) -> Expression:
    """Parse the value of a header. Raises `MethodError` (`malformed_expression`) with the position, and nothing else."""
    _check_text(value)
    end = len(value.rstrip(b" "))
    start = len(value) - len(value.lstrip(b" "))
    method = _METHOD(value, start, end)
    if method is None:
        raise _malformed("the name of an algorithm expected", start)
    position = method.end()
    parameters: list[Parameter] = []
    seen: set[str] = set()
    while position < end:
        if value[position : position + 1] != b";":
            raise _malformed("';' expected", position)
        position = _after_spaces(value, position + 1)
        if len(parameters) == _MAX_PARAMETERS:
            raise _malformed(f"more than {_MAX_PARAMETERS} parameters", position)
        parameter, position = _parameter(value, position, end)
        if parameter.name in seen:
            raise _malformed(f"duplicate parameter {quoted(parameter.name)}", parameter.position)
        seen.add(parameter.name)
        parameters.append(parameter)
    return Expression(method.group().decode(), start, tuple(parameters))


def _check_text(value: bytes) -> None:
    """Check the rules that hold for the whole text."""
    if len(value) > _MAX_BYTES:
        raise _malformed(f"longer than {_MAX_BYTES} bytes", _MAX_BYTES)
    wrong = _NOT_PRINTABLE(value)
    if wrong is not None:
        raise _malformed("a byte that is not printable ASCII", wrong.start())
    comma = value.find(b",")
    if comma >= 0:
        raise _malformed("',' is not allowed", comma)


def _after_spaces(value: bytes, position: int) -> int:
    while value[position : position + 1] == b" ":
        position += 1
    return position


def _parameter(value: bytes, position: int, end: int) -> tuple[Parameter, int]:
    """The parameter at `position`, and the position after it."""
    name = _NAME(value, position, end)
    if name is None:
        raise _malformed("the name of a parameter expected", position)
    text = name.group().decode()
    at = name.end()
    if value[at : at + 1] != b"=":
        raise _malformed(f"'=' expected after {quoted(text)}", at)
    kind, found, after = _value(value, at + 1, end, text)
    return Parameter(text, kind, found, position, at + 1), after


def _value(value: bytes, position: int, end: int, name: str) -> tuple[ValueKind, str, int]:
    """Kind and text of the value at `position`, and the position after it."""
    token = _TOKEN(value, position, end)
    if token is not None:
        return ValueKind.TOKEN, token.group().decode(), token.end()
    number = _NUMBER(value, position, end)
    if number is not None:
        whole, point, fraction = number.groups()
        if point is None:
            if len(whole) > _INTEGER_DIGITS:
                raise _malformed(f"{quoted(name)} has more than {_INTEGER_DIGITS} digits", position)
            return ValueKind.INTEGER, number.group().decode(), number.end()
        if len(whole) > _WHOLE_DIGITS or not 1 <= len(fraction) <= _FRACTION_DIGITS:
            digits = f"1 to {_WHOLE_DIGITS} digits before the point and 1 to {_FRACTION_DIGITS} after it"
            raise _malformed(f"{quoted(name)} must have {digits}, or be in quotes", position)
        return ValueKind.DECIMAL, number.group().decode(), number.end()
    string = _STRING(value, position, end)
    if string is None:
        raise _malformed(f"{quoted(name)} must be an integer, a decimal, a token or a string", position)
    semicolon = value.find(b";", position, string.end())
    if semicolon >= 0:
        raise _malformed(f"{quoted(name)} has ';' in its string", semicolon)
    return ValueKind.STRING, _ESCAPE(r"\1", string.group(1).decode()), string.end()


def _malformed(rule: str, position: int) -> MethodError:
    message = f"malformed routing expression: {rule} at byte {position}"
    return MethodError(MethodErrorCode.MALFORMED_EXPRESSION, message, position)
