"""Response fields of limits, as OpenAI clients read them: `x-ratelimit-*`, `retry-after`, `retry-after-ms`, `x-should-retry`."""

import math
from collections.abc import Sequence
from typing import Final

from router.openai.limits.counter import Bucket, Kind
from router.openai.limits.token_bucket import until_full_ms
from router.openai.ports import Headers

PATIENCE_OF_CLIENTS_MS: Final = 60_000
"""Longest pause for which a client is asked to try again by itself: the SDK waits no longer than 60 s, in later releases 120 s."""

_NAMES: Final = tuple(
    (kind, tuple(f"x-ratelimit-{what}-{kind.value}".encode() for what in ("limit", "remaining", "reset")))
    for kind in Kind
)


def duration_text(milliseconds: float) -> str:
    """A time as Go writes it, which is what OpenAI sends: `6m0s`, `3.599s`, `600ms`; at least `1ms`."""
    total = max(1, math.floor(milliseconds))
    if total < 1_000:
        return f"{total}ms"
    seconds, rest = divmod(total, 1_000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    fraction = f"{rest / 1_000:.3f}".rstrip("0")[1:] if rest else ""
    text = f"{seconds}{fraction}s"
    if hours:
        return f"{hours}h{minutes}m{text}"
    return f"{minutes}m{text}" if minutes else text


def limit_fields(buckets: Sequence[Bucket], levels: Sequence[float]) -> Headers:
    """Limit, remaining and reset for requests and for tokens: each of the bucket with the smallest share left."""
    found: list[tuple[bytes, bytes]] = []
    for kind, names in _NAMES:
        tightest: Bucket | None = None
        left = least = 0.0
        for index, bucket in enumerate(buckets):
            if bucket.kind is kind:
                level = levels[index]
                share = level / bucket.capacity
                if tightest is None or share < least:
                    tightest, left, least = bucket, level, share
        if tightest is not None:
            capacity = tightest.capacity
            reset = duration_text(until_full_ms(left, capacity, tightest.period_ms))
            found.append((names[0], str(capacity).encode()))
            found.append((names[1], str(math.floor(left)).encode() if left > 0 else b"0"))
            found.append((names[2], reset.encode()))
    return tuple(found)


def retry_fields(wait_ms: float) -> Headers:
    """When to try again; clients are told not to do so by themselves if that is long."""
    whole_ms = max(1, math.ceil(wait_ms))
    found: Headers = (
        (b"retry-after", str(math.ceil(whole_ms / 1_000)).encode()),
        (b"retry-after-ms", str(whole_ms).encode()),
    )
    return (*found, (b"x-should-retry", b"false")) if whole_ms > PATIENCE_OF_CLIENTS_MS else found
