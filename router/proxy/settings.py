"""What can be set about proxying; `router/config` fills it."""

from dataclasses import dataclass

from tunnel_protocol.limit import Limit

REPLAY_COPY = Limit("proxy.replay_copy", bytes=64 * 1024 * 1024, option="--proxy-max-replay-body-bytes")
"""The copy of one body. Its pieces are blocks, so the bytes bound them as well."""

REPLAY_TOTAL = Limit("proxy.replay_total", bytes=256 * 1024 * 1024, option="--proxy-max-replay-total-bytes")
"""The copies of all requests."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxySettings:
    """Limits and switches of the request path. Times in milliseconds, sizes in bytes."""

    request_timeout_ms: int
    """From opening a tunnel stream to the response head, per attempt."""

    max_connect_retries: int
    """Further attempts of one request after transport failures."""

    max_request_retries: int
    """Further attempts of one request after retryable answers."""

    max_replay_body_bytes: int
    """Largest request body that is kept for another attempt; a larger `content-length` is refused with 413."""

    max_replay_total_bytes: int
    """Copies of all requests together; beyond it requests are forwarded without one. 0 = no limit."""

    require_retry_signal: bool
    """Retry a 429 or 503 only if the worker marked it as retryable."""

    retry_budget_header: str | None
    """Request header with the time budget for retries; None switches budgets off."""

    no_repeat_accepted: bool
    """Do not repeat a request that a worker has acknowledged in full (a second generation would cost twice)."""

    response_idle_timeout_ms: int
    """End a response abnormally after this long without a byte of body; 0 = never."""

    access_log: bool
    """One info line per finished request."""
