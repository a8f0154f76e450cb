"""Input-work admission: refuses a request if the target needs too long for its queued prompt tokens at its throughput."""

import math
from collections.abc import Iterable
from typing import Final

from router.balancing.candidate import Candidate
from router.balancing.estimates import valid_tps

LIMIT_EXCEEDED: Final = "input_work_limit_exceeded"
NO_CAPACITY: Final = "input_work_capacity_unavailable"


def input_work_seconds(candidates: Iterable[Candidate], input_tokens: int) -> float | None:
    """Seconds that the candidates together need for their queues and this request; None without a valid throughput."""
    work, rate = input_tokens, 0.0
    for candidate in candidates:
        work += candidate.queued_input_size
        rate += valid_tps(candidate)
    if not 0.0 < rate < math.inf:
        return None
    seconds = work / rate
    return seconds if math.isfinite(seconds) else None


def rejection(candidates: Iterable[Candidate], input_tokens: int, limit_seconds: float) -> str | None:
    """Why the request is refused, or None if it is admitted."""
    seconds = input_work_seconds(candidates, input_tokens)
    if seconds is None:
        return NO_CAPACITY
    return LIMIT_EXCEEDED if seconds > limit_seconds else None
