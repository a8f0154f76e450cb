"""Counts in the memory of this process. What it holds is lost with the process: all buckets are full after a restart."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from router.openai.limits.counter import Bucket, Charge, Outcome, Slots, Verdict
from router.openai.limits.token_bucket import refilled, taken
from tunnel_protocol.limit import Limit

BUCKETS: Final = Limit("openai.limit_buckets", pieces=100_000)
"""Buckets that are not full, of all keys and models together."""

_MAX_BUCKETS = BUCKETS.pieces or 0
_SWEPT_PER_NEW_BUCKET: Final = 2


class _Level:
    """State of a bucket. One that is full has none, as a bucket that nobody used."""

    __slots__ = ("at_ms", "capacity", "level", "period_ms")

    def __init__(self, bucket: Bucket, at_ms: float) -> None:
        self.level = float(bucket.capacity)
        self.at_ms = at_ms
        self.capacity = bucket.capacity
        self.period_ms = bucket.period_ms

    def refill(self, now_ms: float) -> float:
        elapsed_ms = now_ms - self.at_ms
        if elapsed_ms > 0:
            self.level = refilled(self.level, elapsed_ms, self.capacity, self.period_ms)
            self.at_ms = now_ms
        return self.level


class MemoryCounter:
    """The counter of one process; every call is atomic, as it does not wait."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """`clock` returns monotonic seconds."""
        self._clock = clock
        self._levels: OrderedDict[str, _Level] = OrderedDict()
        """The least recently used first."""
        self._running: dict[str, set[str]] = {}
        """The leases of each scope with slots; bounded by the requests that run."""

    def __len__(self) -> int:
        return len(self._levels)

    @property
    def running(self) -> int:
        """Leases that are held."""
        return sum(map(len, self._running.values()))

    def reserve(
        self,
        owner: str,  # noqa: ARG002 (the port)
        charges: tuple[Charge, ...],
        slots: tuple[Slots, ...],
        lease: str,
    ) -> Outcome:
        """See `Counter.reserve`."""
        now_ms = self._clock() * 1000
        found: list[_Level] = []
        granted = True
        for bucket, amount in charges:
            level = self._level(bucket, now_ms)
            if level.refill(now_ms) < amount:
                granted = False
            found.append(level)
        running = []
        for name, most in slots:
            held = self._running.get(name)
            count = 0 if held is None else len(held)
            if count >= most:
                granted = False
            running.append(count + 1)
        if not granted:
            return Outcome(Verdict.DENIED, tuple([one.level for one in found]), tuple([count - 1 for count in running]))
        for index, level in enumerate(found):
            bucket, amount = charges[index]
            level.level = taken(level.level, amount, level.capacity)
            # A new bucket is full, and may have made way for the next one.
            self._levels[bucket.name] = level
        for name, _ in slots:
            held = self._running.get(name)
            if held is None:
                self._running[name] = {lease}
            else:
                held.add(lease)
        return Outcome(Verdict.GRANTED, tuple([one.level for one in found]), tuple(running))

    def settle(
        self,
        owner: str,  # noqa: ARG002 (the port)
        charges: tuple[Charge, ...],
        slots: tuple[Slots, ...],
        lease: str,
    ) -> None:
        """See `Counter.settle`."""
        now_ms = self._clock() * 1000
        for bucket, amount in charges:
            found = self._level(bucket, now_ms)
            found.level = taken(found.refill(now_ms), amount, found.capacity)
        for name, _ in slots:
            held = self._running.get(name)
            if held is not None:
                held.discard(lease)
                if not held:
                    del self._running[name]

    def _level(self, bucket: Bucket, now_ms: float) -> _Level:
        found = self._levels.get(bucket.name)
        if found is None:
            self._make_place(now_ms)
            found = self._levels[bucket.name] = _Level(bucket, now_ms)
            return found
        self._levels.move_to_end(bucket.name)
        if found.capacity != bucket.capacity or found.period_ms != bucket.period_ms:
            # The rule was changed by a reload: what was used stays used.
            used = found.capacity - found.refill(now_ms)
            found.capacity, found.period_ms = bucket.capacity, bucket.period_ms
            found.level = taken(float(bucket.capacity), used, bucket.capacity)
        return found

    def _make_place(self, now_ms: float) -> None:
        """Forget buckets that are full again, looking at a few of the least recently used, and one in any case at the limit."""
        for _ in range(_SWEPT_PER_NEW_BUCKET):
            name = next(iter(self._levels), None)
            if name is None:
                return
            oldest = self._levels[name]
            if oldest.refill(now_ms) < oldest.capacity and len(self._levels) < _MAX_BUCKETS:
                return
            del self._levels[name]
