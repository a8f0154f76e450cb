"""Estimates and comparators of a candidate's statistics. Pure; bit-identical to docs/balancing.md, "Estimates"."""

import math
from collections.abc import Callable
from typing import Final

from router.balancing.candidate import Candidate
from tunnel_protocol.queue_time import queue_time_delta_ms

_INF: Final = math.inf
_NS: Final = 1_000_000_000

Score = Callable[[Candidate, int, int], float]
"""(candidate, input tokens, priority) -> score; lower is better."""


def valid_tps(candidate: Candidate) -> float:
    """The prompt throughput in tokens per second if it is finite and positive, else 0."""
    tps = candidate.last_mean_input_tps
    return tps if 0.0 < tps < _INF else 0.0


def queue_estimate_ms(candidate: Candidate, priority: int) -> int | None:
    """Milliseconds in the queue: 0 with a free slot, else the cluster's own estimate for this priority, else one from its
    queue; None if unknown.
    """
    if candidate.has_free_slot:
        return 0
    estimates = candidate.queue_time_estimate_ms_by_priority
    if not estimates:
        return queue_time_delta_ms(candidate.queued_input_size, candidate.last_mean_input_tps)
    estimate = 0
    for key, value in estimates.items():  # ascending
        if key > priority:
            break
        estimate = value
    return estimate


def delay_seconds(work: float, rate: float) -> float:
    """Seconds for `work` tokens at `rate` tokens per second; infinite without a rate."""
    if work == 0:
        return 0.0
    return _INF if rate <= 0.0 else work / rate


def queue_delay_ms(candidate: Candidate, priority: int) -> float:
    """The queue estimate in milliseconds as a score; infinite if there is a queue and no rate."""
    estimate = queue_estimate_ms(candidate, priority)
    if estimate is not None:
        return float(estimate)
    return delay_seconds(candidate.queued_input_size, valid_tps(candidate)) * 1000.0


def duration_ms(nanoseconds: int) -> float:
    """Nanoseconds as float milliseconds, computed from whole seconds and the rest."""
    return (nanoseconds // _NS + (nanoseconds % _NS) / 1e9) * 1000.0


def ttft_ms(
    candidate: Candidate, input_tokens: int, priority: int, *, ignore_queue: bool = False, ignore_prefill: bool = False
) -> float:
    """Estimated time to the first token in milliseconds: round trip, queue and prefill, added in this order."""
    rtt_ns = candidate.rtt_ns
    total = (rtt_ns // _NS + (rtt_ns % _NS) / 1e9) * 1000.0  # `duration_ms` without the call: this is the hot path
    if not ignore_queue:
        estimate = queue_estimate_ms(candidate, priority)
        total += queue_delay_ms(candidate, priority) if estimate is None else estimate
    if input_tokens and not ignore_prefill:
        tps = candidate.last_mean_input_tps
        total += input_tokens / tps * 1000.0 if 0.0 < tps < _INF else _INF
    return total


def discounted_ttft_ms(
    candidate: Candidate,
    input_tokens: int,
    priority: int,
    scale: float,
    *,
    ignore_queue: bool = False,
    ignore_prefill: bool = False,
) -> float:
    """As `ttft_ms`, if only `scale` (0 to 1) of the input tokens have to be processed because the others are cached."""
    if scale == 1.0:
        return ttft_ms(candidate, input_tokens, priority, ignore_queue=ignore_queue, ignore_prefill=ignore_prefill)
    total = ttft_ms(candidate, 0, priority, ignore_queue=ignore_queue)
    return total if ignore_prefill else total + delay_seconds(scale * input_tokens, valid_tps(candidate)) * 1000.0


def _queue_time(candidate: Candidate, input_tokens: int, priority: int) -> float:  # noqa: ARG001 - one shape for all
    return queue_delay_ms(candidate, priority)


def _input_work(candidate: Candidate, input_tokens: int, priority: int) -> float:  # noqa: ARG001
    return delay_seconds(candidate.queued_input_size + input_tokens, valid_tps(candidate))


def _utilization(candidate: Candidate, input_tokens: int, priority: int) -> float:  # noqa: ARG001
    return candidate.num_running_queries / max(candidate.max_engine_concurrency, 1)


def _requests_queued(candidate: Candidate, input_tokens: int, priority: int) -> float:  # noqa: ARG001
    return candidate.queue_size


def comparators() -> dict[str, Score]:
    """All comparators by their name in the configuration."""
    return {
        "ttft": ttft_ms,
        "queue-time": _queue_time,
        "input-work-seconds": _input_work,
        "utilization": _utilization,
        "num-requests-queued": _requests_queued,
    }


def has_capacity(candidate: Candidate, max_queued: int) -> bool:
    """Whether the engine can take one more request; True for engines that do not report their concurrency."""
    limit = candidate.max_engine_concurrency
    return limit == 0 or candidate.num_running_queries < limit + max_queued


def queue_limit_ms(floor_ms: int, ceil_ms: int, request_slo_ms: int | None, elapsed_ms: float) -> float:
    """The longest acceptable queue time in milliseconds: grows from floor to ceiling as the request's SLO is used up."""
    fraction = 1.0 if not request_slo_ms else min(max(elapsed_ms / request_slo_ms, 0.0), 1.0)
    floor_s, ceil_s = floor_ms / 1000.0, ceil_ms / 1000.0
    nanoseconds = round((floor_s + (ceil_s - floor_s) * fraction) * 1e9)
    return duration_ms(max(nanoseconds, 0))
