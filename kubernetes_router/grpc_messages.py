"""gRPC over HTTP/2 as bytes: statuses in trailers, and the length prefix of messages. Sans-I/O.

Source: "gRPC over HTTP2" (PROTOCOL-HTTP2.md of grpc/grpc).
"""

from enum import Enum
from typing import Final
from urllib.parse import quote

from kubernetes_router.http2.stream import Headers

_PRINTABLE: Final = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) != "%")
"""What stands in a status message as it is; all else is percent-encoded."""

RESPONSE_HEAD: Final[Headers] = [(b":status", b"200"), (b"content-type", b"application/grpc")]


class GrpcStatus(Enum):
    """The statuses that this program answers with."""

    INVALID_ARGUMENT = 3
    RESOURCE_EXHAUSTED = 8
    UNIMPLEMENTED = 12
    UNAVAILABLE = 14


def trailers(status: GrpcStatus, message: str) -> Headers:
    """The trailers that end a call."""
    return [(b"grpc-status", b"%d" % status.value), (b"grpc-message", quote(message, safe=_PRINTABLE).encode())]


def framed(message: bytes) -> bytes:
    """An uncompressed message with its prefix."""
    return b"\0" + len(message).to_bytes(4, "big") + message


def field(headers: Headers, name: bytes) -> bytes | None:
    """The first value of a field."""
    return next((value for key, value in headers if key == name), None)


def host_of(authority: str) -> str:
    """An authority without its port (and without the brackets of an IPv6 address)."""
    if authority.startswith("["):
        return authority[1:].partition("]")[0]
    host, colon, port = authority.rpartition(":")
    return host if colon and port.isdigit() else authority
