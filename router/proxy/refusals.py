"""Refuses requests that are not routed: counts and logs them, and answers. docs/proxy.md, "Refused requests"."""

from collections.abc import Callable

import structlog

from router.http1.request import ClientRequest
from router.http1.response import Response
from router.ports.request_ends import RequestEnd
from router.proxy.access_log import AccessLog
from router.proxy.local_replies import LocalReply
from router.proxy.validation import text
from router.telemetry.metrics import Metrics
from tunnel_protocol.observers.sampler import KIND

_log = structlog.get_logger()


class Refusals:
    """Refuses the requests of one HTTP port."""

    def __init__(
        self, metrics: Metrics, access_log: AccessLog, clock: Callable[[], float], *, bodies_with_reason: bool
    ) -> None:
        """`clock` returns monotonic seconds; `bodies_with_reason` is that of `LocalReply.send`."""
        self._metrics = metrics
        self._access_log = access_log
        self._clock = clock
        self._bodies_with_reason = bodies_with_reason

    def refuse(self, request: ClientRequest | None, response: Response, reply: LocalReply) -> None:
        """Answer with `reply`, and record it. `request` is None if its head could not be read."""
        self.record(request, reply)
        reply.send(response, with_reason=self._bodies_with_reason)
        line = self._access_log.refused
        if line.enabled:
            line.write(
                *_names(request),
                None if request is None else request.path.decode("latin-1"),
                reply.status,
                "",
                0,
                None,
                None if request is None else round((self._clock() - request.received_at) * 1000, 3),
                response.body_bytes,
                "refused",
                reply.reason,
            )

    def end(self, request: ClientRequest, reply: LocalReply) -> RequestEnd:
        """The report about a request for a worker that was refused with `reply`."""
        request_id, routing_key, model = _names(request)
        now = self._clock()
        return RequestEnd(
            ended_at=now,
            duration_s=now - request.received_at,
            first_token_s=None,
            request_id=request_id or "",
            routing_key=routing_key,
            model=model or "",
            inference_server_id="",
            cluster_id="",
            attempts=0,
            status=reply.status,
            end="refused",
            reason=reply.reason,
            requested_method="",
            input_tokens=0,
            priority=0,
        )

    def record(self, request: ClientRequest | None, reply: LocalReply) -> None:
        """Count the refusal, and log it; the log has a limited number of lines for each reason."""
        self._metrics.requests_rejected_total.inc((str(reply.status), reply.reason))
        request_id, routing_key, model = _names(request)
        _log.warning(
            "request refused",
            status=reply.status,
            reason=reply.reason,
            method=None if request is None else request.method.decode("latin-1"),
            path=None if request is None else request.path.decode("latin-1"),
            request_id=request_id,
            routing_key=routing_key,
            model_id=model,
            **{KIND: f"request refused: {reply.reason}"},
        )


def _names(request: ClientRequest | None) -> tuple[str | None, str | None, str | None]:
    """Id, routing key and model of a request, as far as it names them."""
    if request is None:
        return None, None, None
    get = request.first.get
    return text(get(b"x-request-id")), text(get(b"x-routing-key")), text(get(b"x-model"))
