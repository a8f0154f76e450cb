"""Settings of the proxy; `router/config` fills them."""

from dataclasses import dataclass
from enum import Enum
from typing import Final

from tunnel_protocol.limit import Limit

REPLAY_COPY: Final = Limit("proxy.replay_copy", bytes=64 * 1024 * 1024, option="--proxy-max-replay-body-bytes")
"""Bytes of one replay copy. Small pieces are collected in blocks, so the bytes bound the number of pieces too."""

REPLAY_TOTAL: Final = Limit("proxy.replay_total", bytes=256 * 1024 * 1024, option="--proxy-max-replay-total-bytes")
"""Bytes of the replay copies of all requests."""


class NoRepeat(Enum):
    """From when on a request is not sent to another worker after a transport failure, because it might be processed twice."""

    NEVER = "never"
    """It is sent again whatever the worker has received."""

    ACKNOWLEDGED = "acknowledged"
    """Once the worker has acknowledged every byte of it."""

    HANDED_OVER = "handed over"
    """Once every byte of it was handed to the tunnel, whether or not the worker has acknowledged them."""


PATHS: Final = frozenset((b"/v1/chat/completions", b"/v1/responses", b"/v1/embeddings"))
"""The paths of release line 0.11 whose POST requests go to workers."""

MESSAGES_PATH: Final = b"/v1/messages"
"""A path that line 0.18 adds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxySettings:
    """Limits and switches of the request path. Times in milliseconds, sizes in bytes."""

    paths: frozenset[bytes]
    """The paths whose POST requests go to workers."""

    trust_routing_method: bool
    """Whether clients choose the algorithm by `x-routing-method`; if not, that header is ignored."""

    drop_listed_headers: bool
    """Do not forward headers that `Connection` lists, in either direction (RFC 9110 section 7.6.1)."""

    not_to_worker: frozenset[bytes]
    """Names of headers that are removed from requests; those of `tunnel_protocol.head.NOT_TO_WORKER` at least."""

    request_timeout_ms: int
    """Time from opening a tunnel stream to the response head, per attempt."""

    max_connect_retries: int
    """Further attempts of one request after transport failures."""

    max_request_retries: int
    """Further attempts of one request after retryable answers."""

    max_replay_body_bytes: int
    """Largest request body that is kept for another attempt; a larger `content-length` is refused with 413."""

    max_replay_total_bytes: int
    """Limit of the copies of all requests together; beyond it requests are sent without one. 0 = no limit."""

    retry_signal_once: bool
    """A retry signal that a worker gives twice allows no retry; else the first one counts."""

    overload_answer: bool
    """Answer requests that fail for lack of capacity with one reply that gateways know (`local_replies.OVERLOADED`)."""

    require_retry_signal: bool
    """Retry a 429 or 503 only if the worker marked it as retryable."""

    retry_budget_header: str | None
    """Name of the request header with the time budget for retries; None = no budgets."""

    no_repeat: NoRepeat
    """From when on a transport failure before the response head is final. Retryable answers are not concerned."""

    unknown_targets_unlabelled: bool
    """Count the 404 for a target that nobody has registered under empty labels instead of the client's names."""

    response_idle_timeout_ms: int
    """Break a response off after this long without a byte of its body; 0 = never."""

    reasons_in_bodies: bool
    """Local replies without a body in the contract get one with their reason, in the shape of OpenAI's errors."""

    failure_logs: bool
    """Log one warning per request that failed at a worker, and one per response that broke off."""

    access_log: bool
    """Whether to log one info line per finished request."""

    method_error_bodies: bool
    """Whether the 400 for `x-routing-method` and its log line tell the class of the error and a message."""
