"""Bytes that arrived out of order, until what is before them has arrived (RFC 9000 sections 2.2 and 7.5).

Memory is held for bytes that arrived, never for an offset. Each insertion costs a binary search and a copy of what is new; blocks
that touch are joined small into large, so a byte is copied a logarithmic number of times whatever the order of arrival.
"""

from bisect import bisect_right


class Reassembly:
    """Disjoint blocks of bytes above a point up to which everything has arrived. Data that arrived first is kept."""

    __slots__ = ("_blocks", "_starts", "size")

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._blocks: list[bytearray] = []
        self.size = 0
        """Bytes held."""

    def __len__(self) -> int:
        """How many blocks are held: the number of pieces that a bound counts."""
        return len(self._starts)

    def add(self, offset: int, data: bytes) -> None:
        """Keep of `data`, which begins at `offset`, what is not held yet."""
        starts, blocks = self._starts, self._blocks
        at, end = offset, offset + len(data)
        index = bisect_right(starts, offset) - 1
        while at < end:
            if index >= 0 and starts[index] + len(blocks[index]) > at:
                at = starts[index] + len(blocks[index])
                continue
            stop = end if index + 1 == len(starts) else min(end, starts[index + 1])
            if stop <= at:
                index += 1
                continue
            new = data[at - offset : stop - offset]
            self.size += len(new)
            if index >= 0 and starts[index] + len(blocks[index]) == at:
                blocks[index] += new
            else:
                index += 1
                starts.insert(index, at)
                blocks.insert(index, bytearray(new))
            self._join(index)
            at = stop

    def take(self, offset: int) -> bytearray | None:
        """Remove and return the block that holds the byte at `offset`, from there on; None if it has not arrived.

        What is held below `offset` is dropped: it has arrived twice.
        """
        starts, blocks = self._starts, self._blocks
        while starts and starts[0] <= offset:
            start, block = starts.pop(0), blocks.pop(0)
            self.size -= len(block)
            if start + len(block) > offset:
                if start < offset:
                    del block[: offset - start]
                return block
        return None

    def _join(self, index: int) -> None:
        """Join block `index`, which has grown, with blocks it touches above while those are not larger.

        Of two blocks that touch the upper one is thus the larger, so growing never makes a block fit for the one below it.
        """
        starts, blocks = self._starts, self._blocks
        while index + 1 < len(starts):
            block, following = blocks[index], blocks[index + 1]
            if starts[index] + len(block) != starts[index + 1] or len(following) > len(block):
                break
            block += following
            del starts[index + 1], blocks[index + 1]
