"""The paths of the mode `gateway`: three for requests, two for probes, one with the version; everything else is 404."""

from typing import Final

import msgspec

from router.http1.request import ClientRequest
from router.http1.response import Response, ResponseFlow
from router.openai import errors
from router.openai.endpoints import CHAT, EMBEDDINGS, RESPONSES
from router.openai.front_context import FrontContext
from router.openai.gateway_request import GatewayRequest
from router.openai.gateway_texts import NOT_FOUND, RESERVED, message_body
from router.openai.ports import Refusal
from router.telemetry.metrics import Metrics

_ENDPOINTS: Final = {one.path.encode(): one for one in (CHAT, RESPONSES, EMBEDDINGS)}
_PROBES: Final = (b"/healthz", b"/readyz")
_JSON: Final = (b"content-type", b"application/json")


class GatewayFront:
    """Answers every request of the listener. Implements `ServerCallbacks`."""

    def __init__(self, context: FrontContext, metrics: Metrics, *, version: str, commit: str) -> None:
        self.context = context
        self._metrics = metrics
        self._info = (
            msgspec.json.encode({"service": "llm-request-router", "version": version, "commit": commit}) + b"\n"
        )

    def handle(self, request: ClientRequest, response: Response) -> ResponseFlow | None:
        """Answer now and return None, or return the request that answers later."""
        path = request.path
        endpoint = _ENDPOINTS.get(path)
        if endpoint is not None and request.method == b"POST":
            asked = GatewayRequest(self.context, request, response, endpoint)
            asked.begin()
            return asked
        if path in _PROBES and request.method == b"GET":
            response.send(200, self._headers(request))
        elif path == b"/info":
            if request.method == b"GET":
                response.send(200, [*self._headers(request), _JSON], self._info)
            else:
                response.send(405, [*self._headers(request), (b"allow", b"GET")])
        elif b"x-priority" in request.first and path not in _PROBES:
            self._send(request, response, RESERVED)
        else:
            self._send(request, response, NOT_FOUND)
        return None

    def refuse(self, request: ClientRequest | None, response: Response, status: int, reason: str) -> None:  # noqa: ARG002
        """Answer a request that the server does not pass to `handle`."""
        self._send(request, response, errors.of_http(status))

    def connection_refused(self, reason: str) -> None:
        """Count a client connection that was closed as soon as it was accepted."""
        self._metrics.http_connections_refused_total.inc((reason,))

    def _headers(self, request: ClientRequest | None) -> list[tuple[bytes, bytes]]:
        own = self.context.new_id() if request is None else self.context.request_id(request)
        return [(b"x-request-id", own.encode())]

    def _send(self, request: ClientRequest | None, response: Response, refusal: Refusal) -> None:
        fields = [*self._headers(request), *refusal.headers, _JSON]
        response.send(refusal.status, fields, message_body(refusal))
