"""Header blocks that a peer sent, decoded in linear time. Sans-I/O. Source: RFC 7541 sections 3 to 6.

The tables and the Huffman code are those of the `hpack` package. Its own decoder copies the rest of the block for each field, so that a block of
small fields costs quadratic time.
"""

from typing import Final

from hpack.exceptions import HPACKError
from hpack.huffman_table import decode_huffman
from hpack.table import HeaderTable

from router.grpc.frames import ErrorCode, Flood, FloodError, Http2Error

TABLE_BYTES: Final = 4_096
"""Largest dynamic table of a peer: SETTINGS_HEADER_TABLE_SIZE keeps its initial value."""
FIELD_BYTES: Final = 32
"""What RFC 9113 section 6.5.2 adds to the size of each field."""
_INTEGER_SHIFTS: Final = 21
"""Integers have up to three bytes behind their prefix: no length or index that is valid here needs more."""

Headers = list[tuple[bytes, bytes]]


class HeaderDecoder:
    """The decoder of one connection; not to be used again after it has raised."""

    def __init__(self, most_bytes: int) -> None:
        """`most_bytes`: largest decoded block, by the measure of `size_of`."""
        self._most = most_bytes
        self._table = HeaderTable()
        self._block = b""
        self._at = 0

    def decode(self, block: bytes) -> Headers:
        """The fields of one block; those of the tables are not copied. Raises `Http2Error`."""
        self._block = block
        self._at = 0
        try:
            return self._fields()
        except (HPACKError, IndexError):
            raise Http2Error(ErrorCode.COMPRESSION_ERROR, "a block of headers cannot be decoded") from None
        finally:
            self._block = b""

    def _fields(self) -> Headers:
        headers: Headers = []
        left = self._most
        size = len(self._block)
        while self._at < size:
            first = self._block[self._at]
            if first & 0x80:
                name, value = self._entry(self._integer(0x7F))
            elif first & 0x40:
                name, value = self._literal(0x3F)
                self._table.add(name, value)
            elif first & 0x20:
                self._resize(bool(headers))
                continue
            else:
                name, value = self._literal(0x0F)
            left -= len(name) + len(value) + FIELD_BYTES
            if left < 0:
                raise FloodError(Flood.HEADER_BLOCK, "a block of headers is too large")
            headers.append((name, value))
        return headers

    def _entry(self, index: int) -> tuple[bytes, bytes]:
        entry: tuple[bytes, bytes] = self._table.get_by_index(index)
        return entry

    def _literal(self, mask: int) -> tuple[bytes, bytes]:
        index = self._integer(mask)
        name = self._entry(index)[0] if index else self._string()
        return name, self._string()

    def _resize(self, late: bool) -> None:
        """The size of the table changes, which only the beginning of a block may say (section 4.2)."""
        size = self._integer(0x1F)
        if late or size > TABLE_BYTES:
            raise HPACKError
        self._table.maxsize = size

    def _string(self) -> bytes:
        encoded = self._block[self._at] & 0x80
        size = self._integer(0x7F)
        end = self._at + size
        text = self._block[self._at : end]
        if len(text) < size:
            raise IndexError
        self._at = end
        return decode_huffman(text) if encoded else text

    def _integer(self, mask: int) -> int:
        number = self._block[self._at] & mask
        self._at += 1
        if number < mask:
            return number
        for shift in range(0, _INTEGER_SHIFTS, 7):
            byte = self._block[self._at]
            self._at += 1
            number += (byte & 0x7F) << shift
            if byte < 0x80:
                return number
        raise IndexError


def size_of(headers: Headers) -> int:
    """The size of fields as RFC 9113 section 6.5.2 measures it, in bytes."""
    return sum(len(name) + len(value) + FIELD_BYTES for name, value in headers)
