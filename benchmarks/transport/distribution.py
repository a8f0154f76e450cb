"""Statistics of figures: percentiles, spread, a bootstrap confidence interval of the mean, and a noise class."""

import math
import statistics
from collections.abc import Sequence
from typing import TypeVar

import msgspec

from benchmarks.transport.generator import Generator

_Ordered = TypeVar("_Ordered", int, float)

_RESAMPLES = 500
_LOWER = math.ceil((_RESAMPLES - 1) * 0.025)
_UPPER = math.ceil((_RESAMPLES - 1) * 0.975)


def percentile(ordered: Sequence[_Ordered], share: float) -> _Ordered:
    """The element at index ceil((n - 1) * share) of ascending values: always a measured value."""
    return ordered[math.ceil((len(ordered) - 1) * share)]


class Interval(msgspec.Struct, frozen=True):
    """A closed interval."""

    lower: float
    upper: float


class Distribution(msgspec.Struct, frozen=True):
    """The distribution of one figure over the trials. The median of an even count is the upper of the middle values."""

    count: int
    min: float
    max: float
    mean: float
    median: float
    mad: float
    """Median absolute deviation from the median."""
    coefficient_of_variation: float | None
    """Coefficient of variation: sample standard deviation divided by |mean|; None for one value or a mean of 0."""
    p90: float
    p95: float
    p99: float
    mean_ci_95: Interval | None


def describe(values: Sequence[float], seed: int) -> Distribution:
    """The statistics of at least one value; `seed` is for the bootstrap resamples."""
    ordered = sorted(values)
    count = len(ordered)
    mean = sum(ordered) / count
    median = percentile(ordered, 0.5)
    spread = statistics.stdev(ordered) / abs(mean) if count > 1 and mean != 0 else None
    return Distribution(
        count=count,
        min=ordered[0],
        max=ordered[-1],
        mean=mean,
        median=median,
        mad=percentile(sorted(abs(value - median) for value in ordered), 0.5),
        coefficient_of_variation=spread,
        p90=percentile(ordered, 0.90),
        p95=percentile(ordered, 0.95),
        p99=percentile(ordered, 0.99),
        mean_ci_95=_interval(ordered, seed) if count > 1 else None,
    )


def classify(figures: Distribution, threshold: float) -> str:
    """`reliable` or `noisy` by the coefficient of variation, `inconclusive` without one."""
    spread = figures.coefficient_of_variation
    if figures.count < 2 or spread is None:
        return "inconclusive"
    return "reliable" if spread <= threshold else "noisy"


def _interval(ordered: Sequence[float], seed: int) -> Interval:
    generator = Generator(seed)
    count = len(ordered)
    means = []
    for _ in range(_RESAMPLES):
        total = 0.0
        for _ in range(count):
            total += ordered[generator.below(count)]
        means.append(total / count)
    means.sort()
    return Interval(means[_LOWER], means[_UPPER])
