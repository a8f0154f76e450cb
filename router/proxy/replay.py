"""A copy of the request body for retries, with a limit in bytes per request and one for all requests together."""

from collections.abc import Callable
from enum import IntEnum
from typing import Final

from router.http1.blocks import Blocks


class ReplayState(IntEnum):
    """The state of a copy; it only increases."""

    UNTOUCHED = 0
    """No attempt has begun to read the original body, which is still available."""

    COPYING = 1
    """An attempt reads the original body; each piece is copied."""

    COMPLETE = 2
    """The copy holds the whole body."""

    LOST = 3
    """The body cannot be replayed: the attempt ended before the end of the body, or the budget of all copies is used up."""

    TOO_LARGE = 4
    """The body is larger than the limit of one copy."""


# Bound once: looking a member up in its enum takes as long as ten such comparisons (Python 3.11), and these run for every chunk.
_UNTOUCHED: Final = ReplayState.UNTOUCHED
_COMPLETE: Final = ReplayState.COMPLETE
_COPYING: Final = ReplayState.COPYING
_LOST: Final = ReplayState.LOST
_TOO_LARGE: Final = ReplayState.TOO_LARGE


class ReplayBudget:
    """Bytes of copies held by all requests of the process; `on_exhausted` is called for each refusal."""

    def __init__(self, limit_bytes: int, on_exhausted: Callable[[], None]) -> None:
        self._limit = limit_bytes
        self._on_exhausted = on_exhausted
        self.used_bytes = 0

    def take(self, size: int) -> bool:
        """Reserve `size` bytes; False if the limit does not allow it."""
        if self._limit and self.used_bytes + size > self._limit:
            self._on_exhausted()
            return False
        self.used_bytes += size
        return True

    def give_back(self, size: int) -> None:
        """Release `size` bytes."""
        self.used_bytes -= size


class ReplayBuffer:
    """Copies the body of one request while its first attempt uploads it; must be closed."""

    __slots__ = ("_blocks", "_budget", "_limit", "_size", "state")

    def __init__(self, limit_bytes: int, budget: ReplayBudget) -> None:
        self._limit = limit_bytes
        self._budget = budget
        self._blocks = Blocks()
        self._size = 0
        self.state = _UNTOUCHED

    @property
    def replayable(self) -> bool:
        """Whether another attempt could send the body: from the copy, or from an original that nothing has read."""
        return self.state is _UNTOUCHED or self.state is _COMPLETE

    @property
    def touched(self) -> bool:
        """Whether an attempt has started to read the original body."""
        return self.state is not _UNTOUCHED

    @property
    def held_bytes(self) -> int:
        """Size of the copy in bytes."""
        return self._size

    @property
    def chunks(self) -> list[bytes]:
        """The pieces of the copy; the whole body only in state `COMPLETE`."""
        return self._blocks.pieces()

    def touch(self) -> None:
        """An attempt begins to read the original body."""
        self._advance(_COPYING)

    def add(self, data: bytes) -> None:
        """Copy `data`, if the limits allow it."""
        if self.state >= _LOST:
            return
        size = len(data)
        if self._size + size > self._limit:
            self._advance(_TOO_LARGE)
            self._release()
        elif not self._budget.take(size):
            self.lose()
        else:
            self._blocks.add(data)
            self._size += size

    def complete(self) -> None:
        """The original body has been read to its end."""
        self._advance(_COMPLETE)

    def lose(self) -> None:
        """The original body cannot be read to its end any more; a complete copy is kept."""
        if self.state is not _COMPLETE:
            self._advance(_LOST)
            self._release()

    def close(self) -> None:
        """Drop the copy and release its bytes: no retry follows."""
        self._advance(_LOST)
        self._release()

    def _advance(self, state: ReplayState) -> None:
        if state > self.state:
            self.state = state

    def _release(self) -> None:
        self._budget.give_back(self._size)
        self._size = 0
        self._blocks.clear()
