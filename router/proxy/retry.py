"""Which failures and responses lead to another attempt. Pure functions; tables in docs/proxy.md, "Retries"."""

from enum import Enum

from router.proxy.replay import ReplayState
from tunnel_protocol.head import RETRY_REASON, RETRYABLE, ResponseHead

RETRYABLE_STATUSES = frozenset((429, 503))
QUEUE_ESTIMATE_MISMATCH = "queue_estimate_mismatch"
UNNAMED = "retryable_upstream_response"
BUDGET_EXHAUSTED = "retry_budget_exhausted"
CONNECT_RETRIES_EXHAUSTED = "connect_retries_exhausted"
NO_ELIGIBLE_BACKEND = "no_eligible_backend"
HOT_PATH_RECONNECT = "hot_path_reconnect"
CONNECT_FAILOVER = "connect_failover"
PROXY_ERROR = "retryable_proxy_error"
MAY_HAVE_BEEN_APPLIED = "request_may_have_been_applied"


class Verdict(Enum):
    """The decision after a failed attempt or a retryable response."""

    AGAIN = "another attempt"
    BUDGET_OVER = "the time for retries is over"
    RETRIES_USED_UP = "there were as many as allowed"
    TOO_LARGE = "the body outgrew its copy"
    INCOMPLETE = "the body is not complete in the copy"
    ACCEPTED = "the worker had accepted all of the request"


def verdict(*, budget_over: bool, retries_left: bool, replay: ReplayState, accepted: bool = False) -> Verdict:
    """Whether to retry, or the first reason against it, in the documented order. `accepted`: a worker has the whole request."""
    if budget_over:
        return Verdict.BUDGET_OVER
    if not retries_left:
        return Verdict.RETRIES_USED_UP
    if replay is ReplayState.TOO_LARGE:
        return Verdict.TOO_LARGE
    if replay is ReplayState.COPYING or replay is ReplayState.LOST:
        return Verdict.INCOMPLETE
    return Verdict.ACCEPTED if accepted else Verdict.AGAIN


def retry_reason(head: ResponseHead, *, signal_required: bool) -> str | None:
    """Why this response may be retried, or None. A retry signal other than `true` forbids it even if none is required."""
    if head.status not in RETRYABLE_STATUSES:
        return None
    signal = _first(head, RETRYABLE)
    if signal is None:
        if signal_required:
            return None
    elif signal.lower() != b"true":
        return None
    return named_reason(head)


def named_reason(head: ResponseHead) -> str:
    """The reason that a worker gives for a retryable answer."""
    return (_first(head, RETRY_REASON) or b"").strip(b" \t").decode("latin-1") or UNNAMED


def releases_reservation(head: ResponseHead) -> bool:
    """Whether the worker refused because the queue estimate it was sent is wrong: then its reservation is released."""
    return (
        head.status == 429
        and (_first(head, RETRYABLE) or b"").lower() == b"true"
        and _first(head, RETRY_REASON) == QUEUE_ESTIMATE_MISMATCH.encode()
    )


def _first(head: ResponseHead, name: bytes) -> bytes | None:
    for entry in head.headers:
        if entry[0] == name:
            return entry[1]
    return None
