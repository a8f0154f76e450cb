"""Which lines of requests are logged; and the two of an ordinary one: one per attempt and one at its end.

They hold no content and no credentials.
"""

from router.telemetry.logging import FrequentLine


class AccessLog:
    """Holds the lines. Callers check `enabled` of a line before they compute its values: a disabled line costs nothing."""

    def __init__(self, *, finished: bool, failures: bool) -> None:
        self.failures = failures
        """Whether a request that failed at a worker has a line of its own, with all that decided it."""
        self.attempt = FrequentLine(
            "proxying request",
            "routing_key",
            "model_id",
            "input_tokens",
            "requested_algorithm",
            "routing_algorithm",
            "inference_server_id",
            "inference_server_url",
            "connect_retries",
            "request_retries",
        )
        self.finished = FrequentLine(
            "request finished",
            "request_id",
            "routing_key",
            "model_id",
            "path",
            "status",
            "inference_server_id",
            "attempts",
            "first_byte_ms",
            "duration_ms",
            "body_bytes",
            "end",
        )
        """`end` is `complete`, `refused`, `client_gone`, `truncated` or `failed`."""
        self.finished.enabled &= finished
