"""What can be set about proxying. The defaults are those of the command line; extensions are off."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ProxySettings:
    """Limits and switches of the request path. Times in milliseconds, sizes in bytes."""

    request_timeout_ms: int = 30_000
    """From opening a tunnel stream to the response head, per attempt."""

    max_connect_retries: int = 2
    """Further attempts of one request after transport failures."""

    max_request_retries: int = 2
    """Further attempts of one request after retryable answers."""

    max_replay_body_bytes: int = 64 * 1024 * 1024
    """Largest request body that is kept for another attempt; a larger `content-length` is refused with 413."""

    max_replay_total_bytes: int = 256 * 1024 * 1024
    """Copies of all requests together; beyond it requests are forwarded without one. 0 = no limit."""

    require_retry_signal: bool = True
    """Retry a 429 or 503 only if the worker marked it as retryable."""

    retry_budget_header: str | None = "x-stargate-max-wait-ms"
    """Request header with the time budget for retries; None switches budgets off."""

    no_repeat_accepted: bool = False
    """Do not repeat a request that a worker has acknowledged in full (a second generation would cost twice)."""

    response_idle_timeout_ms: int = 0
    """End a response abnormally after this long without a byte of body; 0 = never."""

    access_log: bool = False
    """One info line per finished request."""
