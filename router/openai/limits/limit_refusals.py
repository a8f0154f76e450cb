"""The refusals of limits: which limit, how much is left, and when to try again."""

import math

from router.openai.limits.counter import Bucket, Charge, Outcome, Slots
from router.openai.limits.fields import duration_text, limit_fields, retry_fields
from router.openai.limits.rule import Unit
from router.openai.limits.token_bucket import wait_ms
from router.openai.ports import LimitRefusal

_CODE = "rate_limit_exceeded"
_PAUSE_FOR_A_SLOT_MS = 1_000
"""Nobody knows when a running request ends."""

CANNOT_COUNT = LimitRefusal(
    503,
    "server_error",
    "rate_limit_unavailable",
    "Rate limits cannot be checked at the moment. Try again.",
    headers=retry_fields(_PAUSE_FOR_A_SLOT_MS),
)
_WORDS = {unit.period_ms: unit.word for unit in Unit}


def impossible(bucket: Bucket, input_tokens: int, output_tokens: int) -> LimitRefusal:
    """A request that is larger than a whole limit: trying again cannot help."""
    limit = f"{bucket.capacity} {bucket.kind.value} per {_WORDS[bucket.period_ms]}"
    return LimitRefusal(
        400,
        "invalid_request_error",
        "rate_limit_request_too_large",
        f"The request needs about {input_tokens} input tokens and up to {output_tokens} output tokens, more than your limit of "
        f"{limit} allows at all. Make the input shorter, or ask for fewer output tokens.",
        headers=((b"x-should-retry", b"false"),),
    )


def exhausted(
    charges: tuple[Charge, ...], descriptions: tuple[str, ...], slots: tuple[Slots, ...], outcome: Outcome
) -> LimitRefusal:
    """A request for which too little is left: told is the rule that takes longest to have enough, else the slots."""
    fields = limit_fields([charge.bucket for charge in charges], outcome.levels)
    longest, at = 0.0, -1
    for index, (charge, level) in enumerate(zip(charges, outcome.levels, strict=True)):
        wait = wait_ms(level, charge.amount, charge.bucket.capacity, charge.bucket.period_ms)
        if wait > longest:
            longest, at = wait, index
    if at < 0:
        return _too_many_running(slots, outcome, fields)
    charge, level = charges[at], outcome.levels[at]
    bucket = charge.bucket
    wanted = math.ceil(charge.amount)
    message = (
        f"Rate limit reached for {descriptions[at]} on {bucket.kind.value} per {_WORDS[bucket.period_ms]}: "
        f"limit {bucket.capacity}, remaining {max(0, math.floor(level))}, requested {wanted}. "
        f"Try again in {duration_text(math.ceil(longest))}."
    )
    return LimitRefusal(
        429, bucket.kind.value, _CODE, message, headers=(*_of(bucket, level, fields), *retry_fields(longest))
    )


def _of(bucket: Bucket, level: float, fields: tuple[tuple[bytes, bytes], ...]) -> tuple[tuple[bytes, bytes], ...]:
    """`fields`, but for the kind of `bucket` those of the bucket that refuses."""
    name = bucket.kind.value.encode()
    others = tuple(field for field in fields if not field[0].endswith(name))
    return (*others, *limit_fields([bucket], [level]))


def _too_many_running(
    slots: tuple[Slots, ...], outcome: Outcome, fields: tuple[tuple[bytes, bytes], ...]
) -> LimitRefusal:
    most = min((one.most for one, count in zip(slots, outcome.running, strict=True) if count >= one.most), default=0)
    message = f"Too many of your requests run at a time: limit {most}. Try again when one of them has ended."
    return LimitRefusal(429, "concurrency", _CODE, message, headers=(*fields, *retry_fields(_PAUSE_FOR_A_SLOT_MS)))
