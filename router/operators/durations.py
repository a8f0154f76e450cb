"""Durations counted on a geometric scale: quantiles within 5 %, and counts that can be added up. Pure."""

import math
from collections.abc import Mapping
from typing import Final

from router.operators.live_document import Quantiles

_RATIO: Final = 1.1
_LEAST_S: Final = 0.0001
_STEPS: Final = 200
"""Up to five hours; longer ones count as that."""

BOUNDS_S: Final = tuple(_LEAST_S * _RATIO**step for step in range(_STEPS))
"""Upper bounds of the steps in seconds."""


def step_of(seconds: float) -> int:
    """The step of a duration: the first whose bound is not below it, or the last one."""
    low, high = 0, _STEPS - 1
    while low < high:  # `bisect_left`, which compares objects when compiled; this runs for every request
        middle = (low + high) >> 1
        if BOUNDS_S[middle] < seconds:
            low = middle + 1
        else:
            high = middle
    return low


def quantiles(counts: Mapping[int, int]) -> Quantiles | None:
    """Median and 99th percentile in milliseconds; None without a duration."""
    if not counts:
        return None
    return Quantiles(p50=_quantile(counts, 0.5), p99=_quantile(counts, 0.99))


def _quantile(counts: Mapping[int, int], share: float) -> float:
    """The middle of the step in which the least duration lies that at least `share` of all do not exceed."""
    wanted = math.ceil(sum(counts.values()) * share)
    seen = 0
    step = 0
    for step in sorted(counts):
        seen += counts[step]
        if seen >= wanted:
            break
    return round(BOUNDS_S[step] / math.sqrt(_RATIO) * 1000, 3)
