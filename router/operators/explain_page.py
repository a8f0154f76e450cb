"""`GET /explain` on the metrics port: how a request for a target would be routed right now, as JSON.

Query: `model` (required), `routing_key`, `method`, `input_tokens`, `priority`, `affinity_key`, `request_slo_ms`, `elapsed_ms`,
`exclude` (repeatable). See docs/balancing.md, "Explaining a decision".
"""

import time

from router.balancing import MethodError, RoutingRequest, Selector
from router.balancing.explain import explain
from router.http1.request import ClientRequest
from router.operators.reply import Reply, document, query_of, refusal
from router.registry import Registry, TargetKey

_NUMBERS = ("input_tokens", "priority", "request_slo_ms", "elapsed_ms")


class ExplainPage:
    """Answers queries about routing; a query changes no state."""

    def __init__(self, registry: Registry, selector: Selector) -> None:
        self._registry = registry
        self._selector = selector

    async def answer(self, request: ClientRequest) -> Reply:
        """The explanation, or what is wrong with the query."""
        given = query_of(request)
        query = dict(given)
        model = query.get("model", "").strip()
        if not model:
            return refusal(400, "the query parameter `model` is required, e.g. /explain?model=my-model")
        numbers = {}
        for name in _NUMBERS:
            text = query.get(name, "")
            if text and not (text.isascii() and text.isdigit() and len(text) < 20):
                return refusal(400, f"`{name}` must be a whole number, got `{text}`")
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
            explanation = explain(
                self._selector,
                routing,
                method,
                self._registry.target(key),
                advertised=self._registry.is_advertised(key),
                excluded={cluster for name, cluster in given if name == "exclude"},
                now=now,
            )
        except MethodError as error:
            return refusal(400, str(error))
        return document(explanation)
