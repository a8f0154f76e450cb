"""Bytes that wait, in few pieces however small they came: the memory they take is about their bytes.

An object of two bytes takes thirty-five, and its place in a list eight more. So small pieces are copied into blocks; large
ones, and the first one (most bodies are one piece), are kept as they are.
"""

from tunnel_protocol.limit import Limit

BLOCK = Limit("http1.body_block", bytes=64 * 1024, pieces=1)
"""A block that small pieces are collected in; each body that waits, and each copy, has one that is not full."""

_SMALL = 1024
"""Any two neighbouring pieces hold at least that much together, so a piece costs less than a twentieth of its bytes."""

_BLOCK_BYTES = BLOCK.bytes or 0


class Blocks:
    """A queue of bytes."""

    __slots__ = ("_open", "_pieces", "size")

    def __init__(self) -> None:
        self._pieces: list[bytes] = []  # few, whatever arrives
        self._open: bytearray | None = None  # behind all pieces
        self.size = 0
        """Bytes in it."""

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
        """All of it, in order."""
        self._seal()
        return list(self._pieces)

    def take(self) -> list[bytes]:
        """All of it, in order; nothing is left."""
        if self._open is not None:
            self._seal()
        taken, self._pieces = self._pieces, []
        self.size = 0
        return taken

    def clear(self) -> None:
        """Drop everything."""
        if self.size:
            self._pieces = []
            self._open = None
            self.size = 0

    def _seal(self) -> None:
        if self._open is not None:
            self._pieces.append(bytes(self._open))
            self._open = None
