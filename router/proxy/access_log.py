"""Which lines of requests are logged; and the two of an ordinary one: one per attempt and one at its end.

They hold no content and no credentials.
"""

from typing import Final

from router.telemetry.logging import FrequentLine

_FINISHED: Final = "request finished"
_FIELDS: Final = (
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
        self.finished = FrequentLine(_FINISHED, *_FIELDS)
        """`end` is `complete`, `refused`, `client_gone`, `truncated` or `failed`."""
        self.finished.enabled &= finished
        self.refused = FrequentLine(_FINISHED, *_FIELDS, "reason")
        """The same line for a request that the router itself answered, with the reason."""
        self.refused.enabled &= finished
