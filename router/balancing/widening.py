"""The common part of the wait-and-widen algorithms: which candidates are unlocked now, and the best of a sample of them."""

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import compress
from random import Random

from router.balancing.candidate import Candidate
from router.balancing.estimates import discounted_ttft_ms, has_capacity, queue_delay_ms, queue_limit_ms, ttft_ms
from router.balancing.fields import Fields
from router.balancing.forecast import Forecast, times_ms
from router.balancing.outcome import Wait
from router.balancing.request import RoutingRequest
from router.balancing.sampling import sample

Better = Callable[[Candidate, Candidate, RoutingRequest], bool]
"""Whether the first candidate is strictly better than the second for this request."""


@dataclass(frozen=True)
class WideningSettings:
    """Settings of both wait-and-widen algorithms; defaults as in docs/balancing.md."""

    max_queue_time_floor_ms: int | None = None
    max_queue_time_ceil_ms: int | None = None
    ttft_bucket_size_ms: int = 20
    next_bucket_unlock_factor: float = 0.25
    n: int = 2
    max_queued: int = 0
    ignore_queue_time: bool = False
    ignore_input_processing_time: bool = False

    @classmethod
    def read(cls, fields: Fields) -> "WideningSettings":
        """Read the settings from a definition."""
        default = cls()
        return cls(
            max_queue_time_floor_ms=fields.unsigned("max_queue_time_floor_ms", None),
            max_queue_time_ceil_ms=fields.unsigned("max_queue_time_ceil_ms", None),
            ttft_bucket_size_ms=fields.unsigned("ttft_bucket_size_ms", default.ttft_bucket_size_ms),
            next_bucket_unlock_factor=fields.number("next_bucket_unlock_factor", default.next_bucket_unlock_factor),
            n=fields.unsigned("n", default.n),
            max_queued=fields.unsigned("max_queued", default.max_queued),
            ignore_queue_time=fields.boolean("ignore_queue_time"),
            ignore_input_processing_time=fields.boolean("ignore_input_processing_time"),
        )

    @property
    def limits_queue(self) -> bool:
        """Whether the queue limit applies: only if floor and ceiling are set."""
        return self.max_queue_time_floor_ms is not None and self.max_queue_time_ceil_ms is not None


def unlocked_count(sorted_ttft_ms: Sequence[float], elapsed_ms: float, bucket_ms: float, factor: float) -> int:
    """How many of the sorted TTFTs are unlocked for a request of this age; each unlocked bucket consumes waiting time."""
    budget = elapsed_ms
    start = sorted_ttft_ms[0] if sorted_ttft_ms else 0.0
    for count, value in enumerate(sorted_ttft_ms):
        if not math.isfinite(value):
            return count
        gap = value - start
        if gap > bucket_ms:
            need = gap * factor
            if budget < need:
                return count
            budget -= need
            start = value
    return len(sorted_ttft_ms)


def widening_rule(
    settings: WideningSettings, request: RoutingRequest, candidate: Candidate, elapsed_ms: float
) -> str | None:
    """The first rule that excludes a candidate independent of the waiting time, for explanations; None if there is none."""
    if settings.limits_queue:
        limit = queue_limit_ms(
            settings.max_queue_time_floor_ms or 0,
            settings.max_queue_time_ceil_ms or 0,
            request.request_slo_ms,
            elapsed_ms,
        )
        if queue_delay_ms(candidate, request.priority) > limit:
            return "queue over SLO"
    time = ttft_ms(
        candidate,
        request.input_tokens or 0,
        request.priority,
        ignore_queue=settings.ignore_queue_time,
        ignore_prefill=settings.ignore_input_processing_time,
    )
    if time == math.inf:
        return "no finite TTFT"
    return None if has_capacity(candidate, settings.max_queued) else "engine full"


def widen(
    settings: WideningSettings,
    request: RoutingRequest,
    candidates: Sequence[Candidate],
    excluded: Collection[str],
    elapsed_ms: float,
    unlock_ms: float,
    better: Better,
    random: Random,
    scale: float = 1.0,
) -> Candidate | Wait | None:
    """The best of a sample of the unlocked candidates with capacity; without one, the wait until one is unlocked, if any.

    `elapsed_ms` is the age of the request, `unlock_ms` the part of it that unlocks buckets; `scale` is the share of the input
    tokens that count.
    """
    if excluded:
        candidates = [candidate for candidate in candidates if candidate.cluster_id not in excluded]
    if settings.limits_queue:
        limit = queue_limit_ms(
            settings.max_queue_time_floor_ms or 0,
            settings.max_queue_time_ceil_ms or 0,
            request.request_slo_ms,
            elapsed_ms,
        )
        candidates = [c for c in candidates if queue_delay_ms(c, request.priority) <= limit]
    tokens, priority = request.input_tokens or 0, request.priority
    no_queue, no_prefill = settings.ignore_queue_time, settings.ignore_input_processing_time
    times = [
        discounted_ttft_ms(c, tokens, priority, scale, ignore_queue=no_queue, ignore_prefill=no_prefill)
        for c in candidates
    ]
    unlocked = _unlocked(settings, candidates, times, unlock_ms)
    able = [candidate for candidate in unlocked if has_capacity(candidate, settings.max_queued)]
    if not able:
        return _bucket_wait(settings, candidates, times, unlock_ms)
    return _best_of_sample(settings, able, request, better, random)


def widen_all(
    settings: WideningSettings,
    forecast: Forecast,
    request: RoutingRequest,
    candidates: Sequence[Candidate],
    excluded: Collection[str],
    elapsed_ms: float,
    unlock_ms: float,
    better: Better,
    random: Random,
) -> Candidate | Wait | None:
    """As `widen`, for all candidates of a target, with figures cached between decisions while all are in one bucket."""
    if settings.limits_queue:
        return widen(settings, request, candidates, excluded, elapsed_ms, unlock_ms, better, random)
    column = forecast.column(candidates, request.priority)
    times = times_ms(column, request.input_tokens or 0, ignore_prefill=settings.ignore_input_processing_time)
    able = column.able
    if excluded:
        stays = [candidate.cluster_id not in excluded for candidate in candidates]
        times, candidates = list(compress(times, stays)), list(compress(candidates, stays))
        able = list(compress(candidates, compress(column.has_capacity, stays)))
    unlocked = _unlocked(settings, candidates, times, unlock_ms)
    if unlocked is not candidates:
        able = [candidate for candidate in unlocked if has_capacity(candidate, settings.max_queued)]
    if not able:
        return _bucket_wait(settings, candidates, times, unlock_ms)
    return _best_of_sample(settings, able, request, better, random)


def _unlocked(
    settings: WideningSettings, candidates: Sequence[Candidate], times: Sequence[float], unlock_ms: float
) -> Sequence[Candidate]:
    """The candidates whose bucket is unlocked; `candidates` itself if all are in one bucket."""
    if not times:
        return candidates
    least, most = min(times), max(times)
    if most < math.inf and most - least <= settings.ttft_bucket_size_ms:
        return candidates
    order = _by_time(candidates, times)
    count = unlocked_count(
        [time for time, _ in order], unlock_ms, settings.ttft_bucket_size_ms, settings.next_bucket_unlock_factor
    )
    return [candidate for _, candidate in order[:count]]


def _bucket_wait(
    settings: WideningSettings, candidates: Sequence[Candidate], times: Sequence[float], unlock_ms: float
) -> Wait | None:
    """The wait until the first locked candidate with capacity is unlocked; the same steps as in `unlocked_count`."""
    if not times:
        return None
    start, budget = min(times), unlock_ms
    for time, candidate in _by_time(candidates, times):
        if not math.isfinite(time):
            return None
        gap = time - start
        if gap > settings.ttft_bucket_size_ms:
            budget -= gap * settings.next_bucket_unlock_factor
            start = time
        if budget < 0.0 and has_capacity(candidate, settings.max_queued):
            return Wait(-budget / 1000.0)
    return None


def _by_time(candidates: Sequence[Candidate], times: Sequence[float]) -> list[tuple[float, Candidate]]:
    return sorted(zip(times, candidates, strict=True), key=lambda pair: (pair[0], pair[1].cluster_id))


def _best_of_sample(
    settings: WideningSettings, able: Sequence[Candidate], request: RoutingRequest, better: Better, random: Random
) -> Candidate:
    sampled = sample(able, (), max(1, settings.n), random)
    best = sampled[0]
    for candidate in sampled[1:]:
        if better(candidate, best, request):
            best = candidate
    return best
