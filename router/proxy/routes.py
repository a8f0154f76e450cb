"""The paths of the HTTP port: some POST paths go to workers; the router answers the probes and views itself.

Paths match exactly, on the raw bytes; there are no redirects (a client would turn its POST into a GET).
"""

from collections.abc import Callable
from typing import Final
from urllib.parse import parse_qsl

import msgspec

from router.http1.request import ClientRequest
from router.http1.response import Response, ResponseFlow
from router.proxy.local_replies import LocalReply, plain
from router.proxy.proxy import Proxy
from router.registry import Registry
from router.telemetry.metrics import Metrics

_JSON: Final = (b"content-type", b"application/json")

UNKNOWN_PATH: Final = plain(404, "unknown path")
"""Without a code in a header, unlike the 404 for an unknown model."""

BLANK_MODEL_ID: Final = plain(400, "blank model_ids")
"""A filter of the list of models that names nothing."""


class Routes:
    """Answers every request of the HTTP port."""

    def __init__(
        self,
        proxy: Proxy,
        registry: Registry,
        metrics: Metrics,
        *,
        is_ready: Callable[[], bool],
        debug_config: Callable[[], dict[str, object]],
    ) -> None:
        self._proxy = proxy
        self._refusals = proxy.refusals
        self._proxied = proxy.settings.paths
        self._registry = registry
        self._metrics = metrics
        self._is_ready = is_ready
        self._debug_config = debug_config
        self._views: dict[bytes, Callable[[ClientRequest, Response], None]] = {
            b"/healthz": self._healthz,
            b"/readyz": self._readyz,
            b"/v1/models": self._models,
            b"/debug/state": self._debug_state,
        }

    def handle(self, request: ClientRequest, response: Response) -> ResponseFlow | None:
        """Answer now and return None, or return the request that answers later."""
        if request.path in self._proxied:
            if request.method == b"POST":
                return self._proxy.handle(request, response)
            self._not_allowed(request, response, b"POST")
            return None
        view = self._views.get(request.path)
        if view is None:
            self._refusals.refuse(request, response, UNKNOWN_PATH)
        elif request.method in (b"GET", b"HEAD"):
            view(request, response)
        else:
            self._not_allowed(request, response, b"GET,HEAD")
        return None

    def refuse(self, request: ClientRequest | None, response: Response, status: int, reason: str) -> None:
        """Answer a request that the server does not pass to `handle`."""
        self._refusals.refuse(request, response, plain(status, reason))

    def connection_refused(self, reason: str) -> None:
        """Count a client connection that was closed as soon as it was accepted."""
        self._metrics.http_connections_refused_total.inc((reason,))

    def _not_allowed(self, request: ClientRequest, response: Response, allow: bytes) -> None:
        reply = LocalReply(405, [(b"allow", allow)], b"", "method not allowed")
        self._refusals.refuse(request, response, reply)

    def _healthz(self, request: ClientRequest, response: Response) -> None:  # noqa: ARG002
        response.send(200, [])

    def _readyz(self, request: ClientRequest, response: Response) -> None:  # noqa: ARG002
        response.send(200 if self._is_ready() else 503, [])

    def _models(self, request: ClientRequest, response: Response) -> None:
        query = request.target.partition(b"?")[2].decode("latin-1")
        wanted: set[str] = set()
        for name, value in parse_qsl(query, keep_blank_values=True):
            if name != "model_ids":
                continue
            if not value.strip():
                self._refusals.refuse(request, response, BLANK_MODEL_ID)
                return
            wanted.add(value.strip())
        response.send(200, [_JSON], msgspec.json.encode({"model_ids": self._registry.active_models(None, wanted)}))

    def _debug_state(self, request: ClientRequest, response: Response) -> None:  # noqa: ARG002
        state = {"config": self._debug_config(), "active_model_ids": self._registry.all_active_models()}
        response.send(200, [_JSON], msgspec.json.encode(state))
