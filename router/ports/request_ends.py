"""The port through which the proxy reports that a request has ended; `router/operators` implements it (docs/api.md).

It is called once for each request, and never for a part of one. A report has names and times of the request, never content.
"""

from typing import NamedTuple, Protocol


class RequestEnd(NamedTuple):
    """One request that has ended."""

    ended_at: float
    """Monotonic seconds."""
    duration_s: float
    """Since its head had arrived."""
    first_token_s: float | None
    """From then to the first byte of a worker's response body; None if there was none."""
    request_id: str
    routing_key: str | None
    model: str
    inference_server_id: str
    """The worker of the last attempt; empty if there was none."""
    cluster_id: str
    attempts: int
    status: int
    """What the client got; 0 if it left before."""
    end: str
    """As in the access log: `complete`, `refused`, `client_gone`, `truncated` or `failed`."""
    reason: str
    """Why the router itself answered; empty if a worker did."""
    requested_method: str
    """The algorithm or expression that the request asked for; empty without."""
    input_tokens: int
    priority: int


class RequestEnds(Protocol):
    """Is told of each request that ends."""

    def request_ended(self, end: RequestEnd) -> None:
        """A request has ended; called in the event loop, on the path of the request."""


class _NoRequestEnds:
    """Ignores all reports."""

    __slots__ = ()

    def request_ended(self, end: RequestEnd) -> None: ...


NO_REQUEST_ENDS: RequestEnds = _NoRequestEnds()
"""Ignores all reports: where no page shows them."""
