"""`GET /explain` on the metrics port: how a request for a target would be routed right now, as JSON.

Query: `model` (required), `routing_key`, `method`, `input_tokens`, `priority`, `affinity_key`, `request_slo_ms`, `elapsed_ms`,
`exclude` (repeatable). See docs/balancing.md, "Explaining a decision".
"""

import time

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from router.balancing import MethodError, RoutingRequest, Selector
from router.balancing.explain import explain
from router.registry import Registry, TargetKey

_NUMBERS = ("input_tokens", "priority", "request_slo_ms", "elapsed_ms")


class ExplainPage:
    """Answers queries about routing; a query changes no state."""

    def __init__(self, registry: Registry, selector: Selector) -> None:
        self._registry = registry
        self._selector = selector

    def route(self) -> Route:
        """The route for `OperatorsServer`."""
        return Route("/explain", self._answer, methods=["GET"])

    async def _answer(self, request: Request) -> Response:
        query = request.query_params
        model = query.get("model", "").strip()
        if not model:
            return _refused("the query parameter `model` is required, e.g. /explain?model=my-model")
        numbers = {}
        for name in _NUMBERS:
            text = query.get(name, "")
            if text and not (text.isascii() and text.isdigit() and len(text) < 20):
                return _refused(f"`{name}` must be a whole number, got `{text}`")
            numbers[name] = int(text) if text else None
        now = time.monotonic()
        routing = RoutingRequest(
            routing_key=query.get("routing_key", "").strip() or None,
            model=model,
            input_tokens=numbers["input_tokens"] or 0,
            received_at=now - (numbers["elapsed_ms"] or 0) / 1000,
            affinity_key=query.get("affinity_key", "").strip() or None,
            priority=numbers["priority"] or 0,
            request_slo_ms=numbers["request_slo_ms"],
        )
        key = TargetKey(routing.routing_key, model)
        method = query.get("method", "").strip() or None
        try:
            document = explain(
                self._selector,
                routing,
                method,
                self._registry.target(key),
                advertised=self._registry.is_advertised(key),
                excluded=set(query.getlist("exclude")),
                now=now,
            )
        except MethodError as error:
            return _refused(str(error))
        return Response(msgspec.json.encode(document), media_type="application/json")


def _refused(error: str) -> Response:
    return Response(msgspec.json.encode({"error": error}), status_code=400, media_type="application/json")
