"""Reads the server name of a TLS ClientHello (RFC 8446 section 4.1.2, RFC 6066 section 3). Sans-I/O."""

from typing import Final

from kubernetes_router.relay.initial_packets import FirstFlightError

_CLIENT_HELLO: Final = 1
_SERVER_NAME: Final = 0
_HOST_NAME: Final = 0
_VERSION_AND_RANDOM_BYTES: Final = 34
_LONGEST_NAME: Final = 255
"""Characters of a DNS name (RFC 1035 section 2.3.4); names are logged."""


class _Reader:
    """Takes vectors off the front of a message."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def left(self) -> bool:
        return self._at < len(self._data)

    def take(self, size: int) -> bytes:
        end = self._at + size
        if end > len(self._data):
            raise FirstFlightError("truncated ClientHello")
        found = self._data[self._at : end]
        self._at = end
        return found

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def vector(self, length_bytes: int) -> bytes:
        return self.take(self.number(length_bytes))


def server_name(message: bytes) -> str | None:
    """The host name that a client wants to reach, or None if it does not say.

    `message` is a complete handshake message with its header of 4 bytes. Raises `FirstFlightError` if it is no well-formed
    ClientHello. Takes time in proportion to its length.
    """
    reader = _Reader(message)
    if reader.number(1) != _CLIENT_HELLO:
        raise FirstFlightError("the first TLS message is no ClientHello")
    hello = _Reader(reader.vector(3))
    hello.take(_VERSION_AND_RANDOM_BYTES)
    hello.vector(1)  # session id
    hello.vector(2)  # cipher suites
    hello.vector(1)  # compression methods
    extensions = _Reader(hello.vector(2)) if hello.left else hello
    while extensions.left:
        kind = extensions.number(2)
        content = extensions.vector(2)
        if kind == _SERVER_NAME:
            return _host_name(_Reader(_Reader(content).vector(2)))
    return None


def _host_name(names: _Reader) -> str | None:
    while names.left:
        kind = names.number(1)
        name = names.vector(2)
        if kind == _HOST_NAME:
            text = name.decode("ascii", "replace")
            if len(text) > _LONGEST_NAME or not text.isascii() or not text.isprintable():
                raise FirstFlightError("server name is no host name")
            return text or None
    return None
