"""The request of a decision, as its headers describe it."""


class RoutingRequest:
    """The values of one request; absent ones are None."""

    __slots__ = (
        "affinity_key",
        "input_tokens",
        "max_wait_ms",
        "model",
        "priority",
        "received_at",
        "request_slo_ms",
        "routing_key",
    )

    def __init__(
        self,
        *,
        routing_key: str | None,
        model: str,
        input_tokens: int | None,
        received_at: float,
        affinity_key: str | None = None,
        priority: int = 0,
        request_slo_ms: int | None = None,
        max_wait_ms: int | None = None,
    ) -> None:
        self.routing_key = routing_key
        self.model = model
        self.input_tokens = input_tokens
        """Number of prompt tokens; None (not possible in HTTP requests) counts as 0, except in the KV cache check."""
        self.received_at = received_at
        """Monotonic seconds at which the request head was complete."""
        self.affinity_key = affinity_key
        self.priority = priority
        """Lower is more urgent."""
        self.request_slo_ms = request_slo_ms
        self.max_wait_ms = max_wait_ms
