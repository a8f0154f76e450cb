"""Which failures and responses lead to another attempt. Pure functions; tables in docs/proxy.md, "Retries"."""

from enum import Enum
from typing import Final

from router.proxy.replay import ReplayState
from tunnel_protocol.head import RETRY_REASON, RETRYABLE, ResponseHead

RETRYABLE_STATUSES: Final = frozenset((429, 503))
QUEUE_ESTIMATE_MISMATCH: Final = "queue_estimate_mismatch"
CHAT_USAGE_REWRITE_SATURATED: Final = "chat_usage_rewrite_saturated"
_REASONS_OF_CAPACITY: Final = frozenset((QUEUE_ESTIMATE_MISMATCH, CHAT_USAGE_REWRITE_SATURATED))
UNNAMED: Final = "retryable_upstream_response"
BUDGET_EXHAUSTED: Final = "retry_budget_exhausted"
CONNECT_RETRIES_EXHAUSTED: Final = "connect_retries_exhausted"
NO_ELIGIBLE_BACKEND: Final = "no_eligible_backend"
HOT_PATH_RECONNECT: Final = "hot_path_reconnect"
CONNECT_FAILOVER: Final = "connect_failover"
PROXY_ERROR: Final = "retryable_proxy_error"
MAY_HAVE_BEEN_APPLIED: Final = "request_may_have_been_applied"


class Verdict(Enum):
    """The decision after a failed attempt or a retryable response."""

    AGAIN = "another attempt"
    BUDGET_OVER = "the time for retries is over"
    RETRIES_USED_UP = "there were as many as allowed"
    TOO_LARGE = "the body outgrew its copy"
    INCOMPLETE = "the body is not complete in the copy"
    ACCEPTED = "the worker had accepted all of the request"
    AMBIGUOUS = "the worker may have all of the request, and may have acted on it"


def verdict(
    *, budget_over: bool, retries_left: bool, replay: ReplayState, accepted: bool = False, ambiguous: bool = False
) -> Verdict:
    """Whether to retry, or the first reason against it, in the documented order.

    `accepted`: a worker has the whole request. `ambiguous`: a worker may have it, and that alone forbids to send it again (a body
    that was too large to be sent again keeps its own answer).
    """
    if ambiguous and replay is not ReplayState.TOO_LARGE:
        return Verdict.AMBIGUOUS
    if budget_over:
        return Verdict.BUDGET_OVER
    if not retries_left:
        return Verdict.RETRIES_USED_UP
    if replay is ReplayState.TOO_LARGE:
        return Verdict.TOO_LARGE
    if replay is ReplayState.COPYING or replay is ReplayState.LOST:
        return Verdict.INCOMPLETE
    return Verdict.ACCEPTED if accepted else Verdict.AGAIN


def retry_reason(head: ResponseHead, *, signal_required: bool, signal_once: bool) -> str | None:
    """Why this response may be retried, or None. A retry signal other than `true` forbids it even if none is required.

    `signal_once`: a signal that is given more than once forbids it too; else the first one counts.
    """
    if head.status not in RETRYABLE_STATUSES:
        return None
    signal = _signal(head, once=signal_once)
    if signal is False or (signal is None and signal_required):
        return None
    return named_reason(head)


def named_reason(head: ResponseHead) -> str:
    """The reason that a worker gives for a retryable answer."""
    return _reason(head) or UNNAMED


def refused_for_capacity(head: ResponseHead) -> bool:
    """Whether the worker says that it has no capacity for the request now, and that another worker may have it."""
    return (
        head.status in RETRYABLE_STATUSES and _signal(head, once=True) is True and _reason(head) in _REASONS_OF_CAPACITY
    )


def releases_reservation(head: ResponseHead, *, signal_once: bool) -> bool:
    """Whether the worker refused because the queue estimate it was sent is wrong: then its reservation is released."""
    return (
        head.status == 429
        and _signal(head, once=signal_once) is True
        and _first(head, RETRY_REASON) == QUEUE_ESTIMATE_MISMATCH.encode()
    )


def _signal(head: ResponseHead, *, once: bool) -> bool | None:
    """The retry signal of a worker; None if there is none, False if it is malformed or repeated where `once` forbids that."""
    values = [value for name, value in head.headers if name == RETRYABLE]
    if not values:
        return None
    return values[0].lower() == b"true" and not (once and len(values) > 1)


def _reason(head: ResponseHead) -> str:
    return (_first(head, RETRY_REASON) or b"").strip(b" \t").decode("latin-1")


def _first(head: ResponseHead, name: bytes) -> bytes | None:
    for entry in head.headers:
        if entry[0] == name:
            return entry[1]
    return None
