"""Takes the requests of the HTTP port that go to workers: validates them, and starts one `ProxiedRequest` each."""

from router.balancing import MethodError, RoutingRequest, Selector
from router.http1.request import ClientRequest
from router.http1.response import Response, ResponseWriter
from router.proxy.method_header import MethodHeader
from router.proxy.proxied_request import ProxiedRequest
from router.proxy.proxy_context import Clock, ProxyContext
from router.proxy.settings import ProxySettings
from router.proxy.validation import InvalidRequestError, Validator, ValidRequest
from router.registry import Registry
from router.telemetry.metrics import Metrics


class Proxy(ProxyContext):
    """Creates the proxied requests."""

    def __init__(
        self,
        registry: Registry,
        selector: Selector,
        metrics: Metrics,
        settings: ProxySettings,
        clock: Clock,
    ) -> None:
        super().__init__(registry, selector, metrics, settings, clock)
        self.validator = Validator(
            selector, MethodHeader(selector, metrics, settings, clock, self.loop.call_later), settings
        )

    def in_flight(self) -> list[tuple[str | None, str, str]]:
        """Routing key, model and worker of each request that is being proxied; the worker is empty while none is chosen."""
        return [one.placed() for one in self.running if isinstance(one, ProxiedRequest)]

    def handle(self, request: ClientRequest, response: Response) -> "ProxiedRequest | None":
        """Validate and route a request; None if it was answered with a refusal at once."""
        try:
            valid = self.validator.validate(request)
        except InvalidRequestError as error:
            self.refusals.refuse(request, response, error.reply)
            self.request_ends.request_ended(self.refusals.end(request, error.reply))
            if self.tracing is not None:
                self.tracing.refused(request, error)
            return None
        return self._begin(request, response, valid)

    def relay(
        self,
        request: ClientRequest,
        response: ResponseWriter,
        routing: RoutingRequest,
        request_id: str,
        method: str | None,
    ) -> ProxiedRequest:
        """Route a request whose routing values are known: `request` is what the worker gets.

        `method` is what `x-routing-method` would ask for; one that is not available is ignored. A request that needs an affinity
        key and has none is routed as one that needs none.
        """
        try:
            effective = self.selector.resolve(routing.model, method)
        except MethodError:
            method, effective = None, self.selector.resolve(routing.model, None)
        return self._begin(request, response, ValidRequest(routing, effective, method or "", request_id, None))

    def _begin(self, request: ClientRequest, response: ResponseWriter, valid: ValidRequest) -> ProxiedRequest:
        proxied = ProxiedRequest(self, request, response, valid)
        self.running.add(proxied)
        proxied.route()
        return proxied
