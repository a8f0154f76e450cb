"""Times to first token of a whole list of candidates, kept between decisions.

What does not depend on the request's size (round trip, queue, rate, capacity) is computed once per snapshot and priority.
Snapshots are immutable, so a list whose elements are the same objects has the same figures; after a change only the new
snapshots are looked at.
"""

from collections.abc import Sequence
from typing import NamedTuple

from router.balancing.candidate import Candidate
from router.balancing.estimates import duration_ms, has_capacity, queue_delay_ms, valid_tps

MAX_PRIORITIES = 8
"""Priorities whose figures are kept; more than that in use at once costs time, not correctness."""


class Column(NamedTuple):
    """Figures of one list of candidates at one priority, in the order of the list."""

    seen: list[Candidate]
    base_ms: list[float]
    """Round trip, plus the queue unless it is ignored."""
    rates: list[float] | None
    """Prompt throughput in tokens per second; None if any of them is not usable."""
    able: list[Candidate]
    """Those with capacity."""


class Forecast:
    """The figures of one balancer."""

    def __init__(self, *, ignore_queue: bool, max_queued: int) -> None:
        self._ignore_queue = ignore_queue
        self._max_queued = max_queued
        self._columns: dict[int, Column] = {}

    def column(self, candidates: Sequence[Candidate], priority: int) -> Column:
        """The figures of exactly these candidates."""
        known = self._columns.get(priority)
        if known is not None and known.seen == candidates:
            return known
        before = {} if known is None else dict(zip(known.seen, known.base_ms, strict=True))
        base = []
        for candidate in candidates:
            value = before.get(candidate)
            if value is None:
                value = duration_ms(candidate.rtt_ns)
                value += 0.0 if self._ignore_queue else queue_delay_ms(candidate, priority)
            base.append(value)
        rates = [valid_tps(candidate) for candidate in candidates]
        able = [candidate for candidate in candidates if has_capacity(candidate, self._max_queued)]
        column = Column(list(candidates), base, rates if all(rates) else None, able)
        if known is None and len(self._columns) >= MAX_PRIORITIES:
            self._columns.clear()
        self._columns[priority] = column
        return column


def times_ms(column: Column, input_tokens: int, *, ignore_prefill: bool) -> list[float] | None:
    """Time to first token of each candidate; None if that needs a rate somebody does not have."""
    if ignore_prefill or input_tokens == 0:
        return column.base_ms
    if column.rates is None:
        return None
    return [base + input_tokens / rate * 1000.0 for base, rate in zip(column.base_ms, column.rates, strict=True)]
