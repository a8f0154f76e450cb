"""Response fields of limits, as OpenAI clients read them: `x-ratelimit-*`, `retry-after`, `retry-after-ms`, `x-should-retry`."""

import math
from collections.abc import Sequence

from router.openai.limits.counter import Bucket, Kind
from router.openai.limits.token_bucket import until_full_ms
from router.openai.ports import Headers

PATIENCE_OF_CLIENTS_MS = 60_000
"""Longest pause for which a client is asked to try again by itself: the SDK waits no longer than 60 s, in later releases 120 s."""


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
    for kind in Kind:
        own = [
            (level / one.capacity, one, level) for one, level in zip(buckets, levels, strict=True) if one.kind is kind
        ]
        if own:
            _, bucket, level = min(own, key=lambda entry: entry[0])
            name = kind.value
            reset = until_full_ms(level, bucket.capacity, bucket.period_ms)
            found += [
                (f"x-ratelimit-limit-{name}".encode(), str(bucket.capacity).encode()),
                (f"x-ratelimit-remaining-{name}".encode(), str(max(0, math.floor(level))).encode()),
                (f"x-ratelimit-reset-{name}".encode(), duration_text(reset).encode()),
            ]
    return tuple(found)


def retry_fields(wait_ms: float) -> Headers:
    """When to try again; clients are told not to do so by themselves if that is long."""
    whole_ms = max(1, math.ceil(wait_ms))
    found: Headers = (
        (b"retry-after", str(math.ceil(whole_ms / 1_000)).encode()),
        (b"retry-after-ms", str(whole_ms).encode()),
    )
    return (*found, (b"x-should-retry", b"false")) if whole_ms > PATIENCE_OF_CLIENTS_MS else found
