"""A copy of the request body for another attempt, under a limit per request and one for all requests together."""

from collections.abc import Callable
from enum import Enum

from router.http1.blocks import Blocks


class Replay(Enum):
    """Whether another attempt could be given the body."""

    READY = "ready"
    INCOMPLETE = "incomplete"
    TOO_LARGE = "too large"


class ReplayBudget:
    """Bytes of copies held by all requests of the process; `on_exhausted` is called for each refusal."""

    def __init__(self, limit_bytes: int, on_exhausted: Callable[[], None]) -> None:
        self._limit = limit_bytes
        self._on_exhausted = on_exhausted
        self.used_bytes = 0

    def take(self, size: int) -> bool:
        """Reserve `size` bytes; False if that is too much."""
        if self._limit and self.used_bytes + size > self._limit:
            self._on_exhausted()
            return False
        self.used_bytes += size
        return True

    def give_back(self, size: int) -> None:
        """Release `size` bytes."""
        self.used_bytes -= size


class ReplayBuffer:
    """Collects the body of one request while its first attempt uploads it; must be closed."""

    __slots__ = ("_blocks", "_budget", "_complete", "_limit", "_lost", "_size", "_too_large", "_touched")

    def __init__(self, limit_bytes: int, budget: ReplayBudget) -> None:
        self._limit = limit_bytes
        self._budget = budget
        self._blocks = Blocks()
        self._size = 0
        self._touched = False
        self._complete = False
        self._too_large = False
        self._lost = False

    @property
    def state(self) -> Replay:
        """Whether the body can be had again: untouched counts, the original is still there."""
        if self._too_large:
            return Replay.TOO_LARGE
        if self._complete or not self._touched:
            return Replay.READY
        return Replay.INCOMPLETE

    @property
    def touched(self) -> bool:
        """Whether an attempt has started to read the original body."""
        return self._touched

    @property
    def held_bytes(self) -> int:
        """Bytes of the copy."""
        return self._size

    @property
    def chunks(self) -> list[bytes]:
        """The copy; complete only if `state` is ready after a touch."""
        return self._blocks.pieces()

    def touch(self) -> None:
        """The original body is being read from now on."""
        self._touched = True

    def add(self, data: bytes) -> None:
        """Keep `data`, if the limits allow it."""
        if self._lost or self._too_large:
            return
        size = len(data)
        if self._size + size > self._limit:
            self._too_large = True
            self._release()
        elif not self._budget.take(size):
            self.lose()
        else:
            self._blocks.add(data)
            self._size += size

    def complete(self) -> None:
        """The original body has been read to its end."""
        if not self._lost and not self._too_large:
            self._complete = True

    def lose(self) -> None:
        """The body cannot be had again."""
        if not self._complete:
            self._lost = True
            self._release()

    def close(self) -> None:
        """Nobody will ask again."""
        self._lost = True
        self._complete = False
        self._release()

    def _release(self) -> None:
        self._budget.give_back(self._size)
        self._size = 0
        self._blocks.clear()
