"""The queue times of a cluster of several workers: the mean of theirs, weighted by prompt throughput, for each priority.

Source: docs/control-plane.md, "Aggregates". A worker's queue time as a function of the priority is a step function, so the
weighted sum is kept as one step per priority, and a report costs its own priorities, however many workers there are.
Throughputs are kept as integers over a power of two: there are no rounding errors after workers come and go, and the mean
is always between the least and the greatest queue time.
"""

from collections.abc import Mapping
from math import isfinite
from typing import Final

from router.registry.stats import NO_ESTIMATES, ModelStats
from tunnel_protocol.limit import Limit

PRIORITIES: Final = Limit("registry.shared_priorities", pieces=4_096)
"""Priorities of the mean: the most urgent of all that its workers report; less urgent ones then use the last one kept."""


class MeanQueueTimes:
    """The weighted mean over the workers that were added and not removed again."""

    __slots__ = ("_shift", "_silent", "_steps", "_value", "_weight")

    def __init__(self) -> None:
        self._shift = 0
        # Sum of the throughputs, in units of 2 ** -_shift tokens per second.
        self._weight = 0
        # Per priority: weighted milliseconds that are added from it on, and the number of workers that report it.
        self._steps: dict[int, list[int]] = {}
        # Number of workers that have queued work, but no valid throughput or no queue times.
        self._silent = 0
        # None = has to be computed.
        self._value: Mapping[int, int] | None = NO_ESTIMATES

    def add(self, stats: ModelStats, sign: int = 1) -> None:
        """Add a worker, or with `sign` -1 remove one that was added with the same statistics."""
        self._value = None
        queue_times = stats.queue_time_estimate_ms_by_priority
        queued = stats.queue_size > 0 or stats.queued_input_size > 0
        rate = stats.last_mean_input_tps
        weight = self._weight_of(rate) if rate > 0.0 and isfinite(rate) else 0
        self._weight += sign * weight
        if queued and not (weight and queue_times):
            self._silent += sign
        before_ms = 0
        for priority, wait_ms in queue_times.items():  # ascending
            step = self._steps.get(priority)
            if step is None:
                step = self._steps[priority] = [0, 0]
            if queued:
                step[0] += sign * weight * (wait_ms - before_ms)
                before_ms = wait_ms
            step[1] += sign
            if not step[1]:
                del self._steps[priority]

    def value(self) -> Mapping[int, int]:
        """Milliseconds by priority, ascending; empty if they are not known of all workers that have queued work."""
        if self._value is None:
            self._value = self._computed()
        return self._value

    def _computed(self) -> Mapping[int, int]:
        if self._silent or not self._weight:
            return NO_ESTIMATES
        means: dict[int, int] = {}
        weighted_ms = 0
        for priority in sorted(self._steps)[: PRIORITIES.pieces]:
            weighted_ms += self._steps[priority][0]
            means[priority] = -(-weighted_ms // self._weight)  # rounded up
        return means

    def _weight_of(self, rate: float) -> int:
        numerator, denominator = rate.as_integer_ratio()
        shift = denominator.bit_length() - 1
        if shift > self._shift:
            finer = shift - self._shift
            self._shift = shift
            self._weight <<= finer
            for step in self._steps.values():
                step[0] <<= finer
        return numerator << (self._shift - shift)
