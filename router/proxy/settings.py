"""Settings of the proxy; `router/config` fills them."""

from dataclasses import dataclass

from tunnel_protocol.limit import Limit

REPLAY_COPY = Limit("proxy.replay_copy", bytes=64 * 1024 * 1024, option="--proxy-max-replay-body-bytes")
"""Bytes of one replay copy. Small pieces are collected in blocks, so the bytes bound the number of pieces too."""

REPLAY_TOTAL = Limit("proxy.replay_total", bytes=256 * 1024 * 1024, option="--proxy-max-replay-total-bytes")
"""Bytes of the replay copies of all requests."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxySettings:
    """Limits and switches of the request path. Times in milliseconds, sizes in bytes."""

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

    require_retry_signal: bool
    """Retry a 429 or 503 only if the worker marked it as retryable."""

    retry_budget_header: str | None
    """Name of the request header with the time budget for retries; None = no budgets."""

    no_repeat_accepted: bool
    """Do not retry a request that a worker has acknowledged in full (it could generate a second time)."""

    response_idle_timeout_ms: int
    """Break a response off after this long without a byte of its body; 0 = never."""

    failure_logs: bool
    """Log one warning per request that failed at a worker, and one per response that broke off."""

    access_log: bool
    """Whether to log one info line per finished request."""
