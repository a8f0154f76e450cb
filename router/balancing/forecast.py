"""Times to first token of a list of candidates, cached between decisions.

Figures that do not depend on the request's size (round trip, queue, rate, capacity) are computed once per snapshot and
priority. Snapshots are immutable, so a list of the same objects has the same figures; after a change only those of new
snapshots are computed.
"""

import math
from collections.abc import Sequence
from itertools import compress
from typing import Final, NamedTuple

from router.balancing.candidate import Candidate
from router.balancing.estimates import duration_ms, has_capacity, queue_delay_ms, valid_tps

MAX_PRIORITIES: Final = 8
"""Number of priorities whose figures are cached; more priorities in use only cost time."""


class Column(NamedTuple):
    """Figures of one list of candidates at one priority, in the order of the list."""

    seen: list[Candidate]
    base_ms: list[float]
    """Milliseconds of the round trip, plus the queue unless it is ignored."""
    rates: list[float]
    """Prompt throughput in tokens per second; 0 if not valid."""
    has_capacity: list[bool]
    able: list[Candidate]
    """The candidates with capacity."""


class Forecast:
    """The cached figures of one balancer."""

    def __init__(self, *, ignore_queue: bool, max_queued: int) -> None:
        self._ignore_queue = ignore_queue
        self._max_queued = max_queued
        self._columns: dict[int, Column] = {}

    def column(self, candidates: Sequence[Candidate], priority: int) -> Column:
        """The figures of exactly these candidates."""
        known = self._columns.get(priority)
        if known is not None and known.seen == candidates:
            return known
        column = self._fresh(candidates, priority) if known is None else self._changed(known, candidates, priority)
        if known is None and len(self._columns) >= MAX_PRIORITIES:
            self._columns.clear()
        self._columns[priority] = column
        return column

    def _changed(self, known: Column, candidates: Sequence[Candidate], priority: int) -> Column:
        """`known` with the figures of new snapshots, usually one or two at the same positions."""
        if len(known.seen) != len(candidates):
            return self._fresh(candidates, priority)
        base_ms, rates, able = known.base_ms.copy(), known.rates.copy(), known.has_capacity.copy()
        for index, (before, now) in enumerate(zip(known.seen, candidates, strict=True)):
            if before is not now:
                base_ms[index] = self._base_ms(now, priority)
                rates[index] = valid_tps(now)
                able[index] = has_capacity(now, self._max_queued)
        return Column(list(candidates), base_ms, rates, able, list(compress(candidates, able)))

    def _fresh(self, candidates: Sequence[Candidate], priority: int) -> Column:
        base_ms = [self._base_ms(candidate, priority) for candidate in candidates]
        able = [has_capacity(candidate, self._max_queued) for candidate in candidates]
        rates = [valid_tps(candidate) for candidate in candidates]
        return Column(list(candidates), base_ms, rates, able, list(compress(candidates, able)))

    def _base_ms(self, candidate: Candidate, priority: int) -> float:
        return duration_ms(candidate.rtt_ns) + (0.0 if self._ignore_queue else queue_delay_ms(candidate, priority))


def times_ms(column: Column, input_tokens: int, *, ignore_prefill: bool) -> list[float]:
    """Time to first token of each candidate in milliseconds; infinite if it needs an unknown rate."""
    if ignore_prefill or input_tokens == 0:
        return column.base_ms
    try:
        return [base + input_tokens / rate * 1000.0 for base, rate in zip(column.base_ms, column.rates, strict=True)]
    except ZeroDivisionError:
        return [
            base + input_tokens / rate * 1000.0 if rate else math.inf
            for base, rate in zip(column.base_ms, column.rates, strict=True)
        ]
