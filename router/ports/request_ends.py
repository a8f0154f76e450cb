"""The port through which the proxy reports that a request has ended; `router/operators` implements it (docs/api.md).

It is called once for each request, and never for a part of one. A report has names and times of the request, never content.
"""

from typing import Final, Protocol


class RequestEnd:
    """One request that has ended."""

    __slots__ = (
        "attempts",
        "cluster_id",
        "duration_s",
        "end",
        "ended_at",
        "first_token_s",
        "inference_server_id",
        "input_tokens",
        "model",
        "priority",
        "reason",
        "request_id",
        "requested_method",
        "routing_key",
        "status",
    )

    def __init__(
        self,
        ended_at: float,
        duration_s: float,
        first_token_s: float | None,
        request_id: str,
        routing_key: str | None,
        model: str,
        inference_server_id: str,
        cluster_id: str,
        attempts: int,
        status: int,
        end: str,
        reason: str,
        requested_method: str,
        input_tokens: int,
        priority: int,
    ) -> None:
        self.ended_at = ended_at
        """Monotonic seconds."""
        self.duration_s = duration_s
        """Since its head had arrived."""
        self.first_token_s = first_token_s
        """From then to the first byte of a worker's response body; None if there was none."""
        self.request_id = request_id
        self.routing_key = routing_key
        self.model = model
        self.inference_server_id = inference_server_id
        """The worker of the last attempt; empty if there was none."""
        self.cluster_id = cluster_id
        self.attempts = attempts
        self.status = status
        """What the client got; 0 if it left before."""
        self.end = end
        """As in the access log: `complete`, `refused`, `client_gone`, `truncated` or `failed`."""
        self.reason = reason
        """Why the router itself answered; empty if a worker did."""
        self.requested_method = requested_method
        """The algorithm or expression that the request asked for; empty without."""
        self.input_tokens = input_tokens
        self.priority = priority


class RequestEnds(Protocol):
    """Is told of each request that ends."""

    def request_ended(self, end: RequestEnd) -> None:
        """A request has ended; called in the event loop, on the path of the request."""


class _NoRequestEnds:
    """Ignores all reports."""

    __slots__ = ()

    def request_ended(self, end: RequestEnd) -> None: ...


NO_REQUEST_ENDS: Final[RequestEnds] = _NoRequestEnds()
"""Ignores all reports: where no page shows them."""
