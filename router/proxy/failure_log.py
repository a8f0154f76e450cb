"""The warning about a request that failed at a worker: one line with all that decided it. It holds no content.

Text and fields are those of release line 0.18 of the reference; docs/proxy.md, "Failures in the log". A request for which no
worker is left has a line of its own (`RequestRecorder.nobody_left`).
"""

from typing import Final

import structlog

from router.proxy import retry
from router.proxy.retry import Verdict
from router.proxy.retry_state import RetryState
from router.proxy.validation import ValidRequest
from router.registry import Backend
from tunnel_protocol.head import RETRY_REASON, RETRYABLE, ResponseHead

_log = structlog.get_logger()

_TOO_MANY_REQUESTS: Final = 429
_SERVER_ERROR: Final = 500
_DISPOSITIONS: Final[dict[Verdict | None, str]] = {
    None: "pass_through",
    Verdict.BUDGET_OVER: "retry_exhausted",
    Verdict.RETRIES_USED_UP: "retry_exhausted",
    Verdict.TOO_LARGE: "payload_too_large",
    Verdict.INCOMPLETE: "replay_incomplete",
    Verdict.ACCEPTED: "ambiguous_delivery",
    Verdict.AMBIGUOUS: "ambiguous_delivery",
}
_REASONS_OF_FAILURES: Final = {
    Verdict.BUDGET_OVER: retry.BUDGET_EXHAUSTED,
    Verdict.RETRIES_USED_UP: retry.CONNECT_RETRIES_EXHAUSTED,
    Verdict.TOO_LARGE: retry.PROXY_ERROR,
    Verdict.INCOMPLETE: retry.PROXY_ERROR,
    Verdict.ACCEPTED: retry.MAY_HAVE_BEEN_APPLIED,
    Verdict.AMBIGUOUS: retry.MAY_HAVE_BEEN_APPLIED,
}


def is_failure(status: int) -> bool:
    """Whether an answer with this status is logged although it is passed on as it came."""
    return status >= _SERVER_ERROR or status == _TOO_MANY_REQUESTS


def log_failed_request(
    valid: ValidRequest,
    backend: Backend,
    status: int,
    verdict: Verdict | None,
    head: ResponseHead | None,
    retries: RetryState,
    elapsed_ms: float,
) -> None:
    """The client gets `status` after the last attempt, on `backend`.

    `verdict` is why no further attempt was made, None if the answer was not retryable; `head` is the worker's answer, None if
    it gave none that could be used.
    """
    routing = valid.routing
    reason: str | None = None
    if verdict is not None:
        answered = head is not None and verdict is not Verdict.BUDGET_OVER
        reason = retry.named_reason(head) if head is not None and answered else _REASONS_OF_FAILURES[verdict]
    _log.warning(
        "proxied request failed",
        request_id=valid.request_id,
        routing_key=routing.routing_key,
        model_id=routing.model,
        inference_server_id=backend.inference_server_id,
        cluster_id=backend.cluster_id,
        status=status,
        source="proxy_error" if head is None else "upstream_response",
        disposition=_DISPOSITIONS[verdict],
        retry_reason=reason,
        upstream_retryable=_signal(head),
        upstream_retry_reason=_text(head, RETRY_REASON),
        attempt=retries.attempts,
        connect_retries=retries.connect_retries,
        request_retries=retries.request_retries,
        failed_backends=len(retries.failed_backends),
        elapsed_ms=round(elapsed_ms, 3),
    )


def _signal(head: ResponseHead | None) -> bool | None:
    """Whether the worker marked its answer as retryable; None if it said nothing, or nothing that counts."""
    value = _text(head, RETRYABLE)
    return {"true": True, "false": False}.get((value or "").lower())


def _text(head: ResponseHead | None, wanted: bytes) -> str | None:
    """The value of a header that the worker gave once; None without one, or with several."""
    values = [] if head is None else [value for name, value in head.headers if name == wanted]
    return values[0].strip(b" \t").decode("latin-1") if len(values) == 1 else None
