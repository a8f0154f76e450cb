"""The header blocks that a gRPC server sends, and the heads of requests it accepts. Sans-I/O.

A server sends two different blocks, so they are written as literals that no table has to be kept for (RFC 7541 section 6.2.2).
Source: "gRPC over HTTP2" (PROTOCOL-HTTP2.md of grpc/grpc), RFC 9113 section 8.
"""

from base64 import b64decode
from typing import Final, NamedTuple
from urllib.parse import quote

from router.grpc.header_decoder import Headers

_PRINTABLE: Final = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) != "%")
"""What stands in a status message as it is; all else is percent-encoded."""
_MAX_MESSAGE: Final = 2_048
"""Characters of a status message that are sent: encoded, it fits into one frame."""
_UNITS: Final = {"H": 3_600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}
_TIMEOUT_DIGITS: Final = 8

Metadata = list[tuple[str, str | bytes]]


class MalformedRequestError(Exception):
    """A request head breaks a rule of HTTP/2 (RFC 9113 section 8.1.1)."""


class RequestHead(NamedTuple):
    """The head of a request."""

    method: bytes
    path: str
    content_type: bytes
    encoding: bytes
    """How messages may be compressed; `identity` without the field."""
    timeout_s: float | None
    """How long the caller waits; None: for ever."""
    fields: Headers
    """All other fields, as they were sent: most callers of a connection send the same, and these are not copied."""


def literal(name: bytes, value: bytes) -> bytes:
    """One field that no table remembers."""
    return b"\0" + _string(name) + _string(value)


def _string(text: bytes) -> bytes:
    size = len(text)
    if size < 127:
        return bytes((size,)) + text
    prefix = bytearray(b"\x7f")
    size -= 127
    while size >= 128:
        prefix.append(size & 127 | 128)
        size >>= 7
    prefix.append(size)
    return bytes(prefix) + text


RESPONSE: Final = b"\x88" + literal(b"content-type", b"application/grpc")
"""`:status: 200` and the content type."""


def trailers(status: int, message: str) -> bytes:
    """The block that ends a call."""
    block = literal(b"grpc-status", b"%d" % status)
    if message:
        block += literal(b"grpc-message", quote(message[:_MAX_MESSAGE], safe=_PRINTABLE).encode())
    return block


def refusal(http_status: int) -> bytes:
    """The block that answers what is no gRPC call."""
    return literal(b":status", b"%d" % http_status)


def read_head(headers: Headers) -> RequestHead:
    """Check and read the head of a request. Raises `MalformedRequestError`."""
    pseudo: dict[bytes, bytes] = {}
    known = {b"content-type": b"", b"grpc-encoding": b"identity", b"grpc-timeout": b""}
    fields: Headers = []
    for name, value in headers:
        if name[:1] == b":":
            if fields or name in pseudo or name not in (b":method", b":scheme", b":path", b":authority"):
                raise MalformedRequestError
            pseudo[name] = value
        elif not name or name != name.lower():
            raise MalformedRequestError
        else:
            if name in known:
                known[name] = value
            _value(name, value)
            fields.append((name, value))
    if b":method" not in pseudo or b":path" not in pseudo or b":scheme" not in pseudo:
        raise MalformedRequestError
    return RequestHead(
        pseudo[b":method"],
        pseudo[b":path"].decode("latin-1"),
        known[b"content-type"],
        known[b"grpc-encoding"],
        _seconds(known[b"grpc-timeout"].decode("latin-1")),
        fields,
    )


def metadata(fields: Headers) -> Metadata:
    """The metadata of a call; the values of names that end with `-bin` are decoded."""
    return [(name.decode("latin-1"), _value(name, value)) for name, value in fields]


def first_value(fields: Headers, wanted: str) -> str | bytes | None:
    """The first value of one key of the metadata; None without one."""
    key = wanted.encode("latin-1")
    for name, value in fields:
        if name == key:
            return _value(name, value)
    return None


def _value(name: bytes, value: bytes) -> str | bytes:
    if not name.endswith(b"-bin"):
        return value.decode("latin-1")
    try:
        return b64decode(value + b"=" * (-len(value) % 4))
    except ValueError:
        raise MalformedRequestError from None


def _seconds(text: str) -> float | None:
    """A `grpc-timeout`; one that is not well-formed counts as none, as with the gRPC library."""
    digits, unit = text[:-1], text[-1:]
    if not digits.isascii() or not digits.isdigit() or len(digits) > _TIMEOUT_DIGITS or unit not in _UNITS:
        return None
    return int(digits) * _UNITS[unit]
