"""Holds bytes received out of order until the gap before them is filled (RFC 9000 sections 2.2 and 7.5).

Memory is used only for received bytes, never for gaps. An insertion costs a binary search and a copy of the new bytes. Adjacent
blocks are merged, the smaller into the larger, so each byte is copied a logarithmic number of times for any order of arrival.
"""

from bisect import bisect_right


class Reassembly:
    """Disjoint blocks of bytes with gaps between them. Of bytes received twice the first copy is kept."""

    __slots__ = ("_blocks", "_starts", "size")

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._blocks: list[bytearray] = []
        self.size = 0
        """Number of bytes held."""

    def __len__(self) -> int:
        """Number of blocks held: the pieces that `STREAM_GAPS` and similar limits count."""
        return len(self._starts)

    def add(self, offset: int, data: bytes) -> None:
        """Store the bytes of `data`, which begins at `offset`, that are not held yet."""
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
        """Remove the block that holds the byte at `offset` and return its bytes from there on; None if there is no such block.

        Bytes held below `offset` are dropped: the caller has received them already.
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
        """Merge block `index`, which has grown, with adjacent blocks above it while those are not larger.

        So of two adjacent blocks the upper one is always larger, and a block that grows never has to be merged with the one below.
        """
        starts, blocks = self._starts, self._blocks
        while index + 1 < len(starts):
            block, following = blocks[index], blocks[index + 1]
            if starts[index] + len(block) != starts[index + 1] or len(following) > len(block):
                break
            block += following
            del starts[index + 1], blocks[index + 1]
