"""The health port: `/livez`, `/readyz` and `/metrics`, on the HTTP server of the router."""

import time
from collections.abc import Callable
from typing import Final

from kubernetes_router.metrics import Metrics
from router.http1.request import ClientRequest
from router.http1.response import Response, ResponseFlow
from router.http1.server import HttpServer
from router.http1.settings import ConnectionTimeouts, HttpSettings
from tunnel_protocol.limit import Limit

CONNECTIONS = Limit("kubernetes_router.health_connections", pieces=256)
"""Connections of the health port."""

_SETTINGS: Final = HttpSettings(
    close_unread=True,
    max_connections=CONNECTIONS.pieces or 0,
    timeouts=ConnectionTimeouts(discard=1.0, half_sent=1.0, watch=1.0, stalled=5.0, head=5.0, body=5.0),
)
_EXPOSITION: Final = [(b"content-type", b"text/plain; version=0.0.4; charset=utf-8")]


class HealthServer:
    """Answers probes and scrapes."""

    def __init__(self, metrics: Metrics, *, not_ready: Callable[[], str | None]) -> None:
        """`not_ready` returns the reason why workers cannot be served now, or None."""
        self._metrics = metrics
        self._not_ready = not_ready

    def listen(self) -> HttpServer:
        """A server for a bound socket (`HttpServer.start`)."""
        return HttpServer(self, time.monotonic, _SETTINGS)

    # --- ServerCallbacks -------------------------------------------------------------------------------------------

    def handle(self, request: ClientRequest, response: Response) -> ResponseFlow | None:
        """Answer at once."""
        request.body.detach()
        if request.method not in (b"GET", b"HEAD"):
            response.send(405, [(b"allow", b"GET, HEAD")])
        elif request.path == b"/livez":
            response.send(200, [])
        elif request.path == b"/readyz":
            reason = self._not_ready()
            response.send(200 if reason is None else 503, [], b"" if reason is None else f"{reason}\n".encode())
        elif request.path == b"/metrics":
            response.send(200, _EXPOSITION, self._metrics.render())
        else:
            response.send(404, [])
        return None

    def refuse(self, request: ClientRequest | None, response: Response, status: int, reason: str) -> None:  # noqa: ARG002
        """Answer an unusable request."""
        response.send(status, [])

    def connection_refused(self, reason: str) -> None:
        """A connection beyond the limit was closed."""
