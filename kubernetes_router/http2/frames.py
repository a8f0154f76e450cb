"""Takes GOAWAY frames out of the bytes that a peer sends. Sans-I/O.

A peer that sends GOAWAY may finish the open streams (RFC 9113 section 6.8): a router that drains does. The `h2` library (4.4)
takes the connection as closed at once and refuses all later frames, so it does not get to see these frames.
"""

from typing import Final

_GOAWAY: Final = 0x7
_HEADER_BYTES: Final = 9
_PREFACE_BYTES: Final = 24


class GoAwayFilter:
    """Passes on everything else, and holds at most the header of a frame back."""

    def __init__(self, *, preface: bool) -> None:
        """`preface`: the peer is a client, whose bytes begin with the connection preface."""
        self._passing = _PREFACE_BYTES if preface else 0
        self._dropping = 0
        self._header = bytearray()
        self._payload = bytearray()
        self.error_code: int | None = None
        """The error code of the last GOAWAY; None if there was none."""

    def feed(self, data: bytes) -> bytes:
        """The bytes for the library."""
        if self._passing >= len(data):
            self._passing -= len(data)
            return data
        out = bytearray()
        at = 0
        while at < len(data):
            if self._passing:
                step = min(self._passing, len(data) - at)
                out += data[at : at + step]
                self._passing -= step
            elif self._dropping:
                step = min(self._dropping, len(data) - at)
                self._dropping -= step
                self._payload += data[at : at + min(step, 8 - len(self._payload))]
                if not self._dropping:
                    self._dropped()
            else:
                step = min(_HEADER_BYTES - len(self._header), len(data) - at)
                self._header += data[at : at + step]
                if len(self._header) == _HEADER_BYTES:
                    self._begin(out)
            at += step
        return bytes(out)

    def _begin(self, out: bytearray) -> None:
        length = int.from_bytes(self._header[:3], "big")
        if self._header[3] == _GOAWAY and length >= 8:
            self._dropping = length
        else:
            out += self._header  # a GOAWAY that is too short is an error, which the library reports
            self._passing = length
        self._header.clear()

    def _dropped(self) -> None:
        self.error_code = int.from_bytes(self._payload[4:8], "big")
        self._payload.clear()
