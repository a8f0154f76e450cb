"""A queue of bytes that holds few objects however small the pieces are: the memory it takes is about the number of bytes.

A `bytes` object of two bytes takes 35 bytes of memory, and its entry in a list 8 more. So small pieces are copied into
blocks; large ones, and the first one (most bodies are one piece), are kept without a copy.
"""

from typing import Final

from tunnel_protocol.limit import Limit

BLOCK: Final = Limit("http1.body_block", bytes=64 * 1024, pieces=1)
"""Size in bytes of a block that small pieces are collected in; each queue has at most one that is not full."""

_SMALL: Final = 1024
"""Bytes that two neighbouring pieces hold together at least: the overhead of a piece is below a twentieth of its bytes."""

_BLOCK_BYTES: Final = BLOCK.bytes or 0


class Blocks:
    """A queue of bytes."""

    __slots__ = ("_open", "_pieces", "size")

    def __init__(self) -> None:
        self._pieces: list[bytes] = []  # few, however small the pieces are that are added
        self._open: bytearray | None = None  # the block being filled; it follows all pieces
        self.size = 0
        """Bytes in the queue."""

    def add(self, data: bytes) -> None:
        """Append bytes."""
        self.size += len(data)
        if len(data) >= _SMALL or not self._pieces:
            if self._open is not None:
                self._seal()
            self._pieces.append(data)
        elif self._open is None:
            self._open = bytearray(data)
        else:
            self._open += data
            if len(self._open) >= _BLOCK_BYTES:
                self._seal()

    def pop(self) -> bytes:
        """Remove the first piece; there is one if `size` is not 0."""
        if not self._pieces:
            self._seal()
        data = self._pieces.pop(0)
        self.size -= len(data)
        return data

    def pieces(self) -> list[bytes]:
        """All bytes of the queue, in order; they stay in it."""
        self._seal()
        return list(self._pieces)

    def take(self) -> list[bytes]:
        """Remove and return all bytes of the queue, in order."""
        if self._open is not None:
            self._seal()
        taken, self._pieces = self._pieces, []
        self.size = 0
        return taken

    def clear(self) -> None:
        """Remove all bytes."""
        if self.size:
            self._pieces = []
            self._open = None
            self.size = 0

    def _seal(self) -> None:
        if self._open is not None:
            self._pieces.append(bytes(self._open))
            self._open = None
