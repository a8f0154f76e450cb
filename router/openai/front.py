"""The paths of the front: those of OpenAI's API, the list of models, health, and CORS. Implements `ServerCallbacks`."""

from collections.abc import Callable
from typing import Final
from urllib.parse import unquote_to_bytes

from router.http1.request import ClientRequest
from router.http1.response import Response, ResponseFlow
from router.openai import errors
from router.openai.endpoints import ENDPOINTS
from router.openai.front_context import FrontContext
from router.openai.front_request import FrontRequest
from router.openai.models_request import ModelsRequest
from router.openai.ports import Refusal
from router.telemetry.metrics import Metrics

_MODELS: Final = b"/v1/models"
_JSON: Final = (b"content-type", b"application/json")
_MAX_SHOWN_PATH: Final = 200
_PREFLIGHT_S: Final = b"600"


class Front:
    """Answers every request of the listener for OpenAI clients."""

    def __init__(self, context: FrontContext, metrics: Metrics, *, is_ready: Callable[[], bool]) -> None:
        self.context = context
        self._metrics = metrics
        self._is_ready = is_ready

    def handle(self, request: ClientRequest, response: Response) -> ResponseFlow | None:
        """Answer now and return None, or return the request that answers later."""
        path = request.path
        endpoint = ENDPOINTS.get(path)
        if endpoint is None and path.endswith(b"/"):
            path = path.rstrip(b"/")
            endpoint = ENDPOINTS.get(path)
        if endpoint is not None:
            if request.method == b"POST":
                asked = FrontRequest(self.context, request, response, endpoint)
                asked.begin()
                return asked
            self._other_method(request, response, b"POST")
            return None
        if path == _MODELS or path.startswith(_MODELS + b"/"):
            if request.method in (b"GET", b"HEAD"):
                name = None if path == _MODELS else _name(request.path[len(_MODELS) + 1 :])
                listed = ModelsRequest(self.context, request, response, name)
                listed.begin()
                return listed
            self._other_method(request, response, b"GET, HEAD")
            return None
        if path in (b"/healthz", b"/readyz", b"/health"):
            if request.method in (b"GET", b"HEAD"):
                status = 503 if path == b"/readyz" and not self._is_ready() else 200
                response.send(status, self._headers(request))
                return None
            self._other_method(request, response, b"GET, HEAD")
            return None
        if request.method == b"OPTIONS" and path == b"*":
            response.send(204, self._headers(request))
            return None
        self._send(request, response, errors.unknown_url(*_shown(request)))
        return None

    def refuse(self, request: ClientRequest | None, response: Response, status: int, reason: str) -> None:  # noqa: ARG002
        """Answer a request that the server does not pass to `handle`."""
        self._send(request, response, errors.of_http(status))

    def connection_refused(self, reason: str) -> None:
        """Count a client connection that was closed as soon as it was accepted."""
        self._metrics.http_connections_refused_total.inc((reason,))

    def _other_method(self, request: ClientRequest, response: Response, allow: bytes) -> None:
        """Answer a request for a path that has other methods."""
        if request.method == b"OPTIONS":
            self._preflight(request, response, allow)
            return
        method, path = _shown(request)
        self._send(request, response, errors.method_not_supported(method, path, allow))

    def _preflight(self, request: ClientRequest, response: Response, allow: bytes) -> None:
        headers = [*self._headers(request), (b"allow", allow + b", OPTIONS")]
        if any(name == b"access-control-allow-origin" for name, _ in headers):
            headers += [
                (b"access-control-allow-methods", allow),
                (b"access-control-allow-headers", request.first.get(b"access-control-request-headers", b"*")),
                (b"access-control-max-age", _PREFLIGHT_S),
            ]
        response.send(204, headers)

    def _headers(self, request: ClientRequest) -> list[tuple[bytes, bytes]]:
        return self.context.headers(request, self.context.request_id(request))

    def _send(self, request: ClientRequest | None, response: Response, refusal: Refusal) -> None:
        own = [(b"x-request-id", self.context.new_id().encode())] if request is None else self._headers(request)
        response.send(refusal.status, [*own, *refusal.headers, _JSON], errors.envelope(refusal))


def _shown(request: ClientRequest) -> tuple[str, str]:
    """Method and path for a message."""
    return request.method.decode("latin-1"), request.path[:_MAX_SHOWN_PATH].decode("latin-1")


def _name(quoted: bytes) -> str:
    """The model in a path; its slashes may be percent-encoded or not."""
    return unquote_to_bytes(quoted).decode("utf-8", "replace")
