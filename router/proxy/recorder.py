"""Metrics and log lines of one proxied request. They hold no content and no credentials.

Families: docs/operations.md, "Metrics". A request whose client closes before the response head has no status in the metrics.
"""

import structlog

from router.http1.request import ClientRequest
from router.http1.response import ResponseWriter
from router.ports.request_ends import NO_REQUEST_ENDS, RequestEnd, RequestEnds
from router.proxy import retry
from router.proxy.access_log import AccessLog
from router.proxy.failure_log import log_failed_request
from router.proxy.placement import RoutedChoice
from router.proxy.request_series import RequestSeries, TargetSeries
from router.proxy.request_trace import RequestTrace
from router.proxy.retry import Verdict
from router.proxy.retry_state import RetryState
from router.proxy.validation import ValidRequest
from router.registry import Backend
from router.telemetry.metrics import UNKNOWN_TARGET, Metrics
from tunnel_protocol.head import HeaderList, ResponseHead

_log = structlog.get_logger()


class RequestRecorder:
    """Records the events of one request. `now` is in monotonic seconds."""

    __slots__ = (
        "_access_log",
        "_all_series",
        "_ends",
        "_labels",
        "_metrics",
        "_received_at",
        "_selected_before",
        "_series",
        "_trace",
        "_valid",
    )

    def __init__(
        self,
        metrics: Metrics,
        series: RequestSeries,
        access_log: AccessLog,
        valid: ValidRequest,
        received_at: float,
        trace: RequestTrace | None = None,
        ends: RequestEnds = NO_REQUEST_ENDS,
    ) -> None:
        """`trace` is None if the request is not traced and its headers are forwarded as they came; `ends` is told of its end."""
        self._ends = ends
        self._metrics = metrics
        self._all_series = series
        self._series: TargetSeries | None = None
        """Those of the target, from its first choice on."""
        self._access_log = access_log
        self._valid = valid
        self._received_at = received_at
        self._labels = (valid.routing.routing_key or "", valid.routing.model)
        self._selected_before = False
        self._trace = trace

    def traced(self, headers: HeaderList) -> HeaderList:
        """`headers` for the worker of the current attempt, with its trace context."""
        return headers if self._trace is None else self._trace.headers(headers)

    # --- routing ---------------------------------------------------------------------------------------------------

    def chosen(self, chosen: RoutedChoice, now: float, waited: bool, overflowed: bool) -> None:
        """A cluster was chosen; `waited`: after a wait for one, `overflowed`: instead of a worker without a free stream."""
        metrics, labels = self._metrics, self._labels
        series = self._series
        if series is None:
            series = self._series = self._all_series.of_target(labels)
        if not self._selected_before:
            self._selected_before = True
            seconds = now - self._valid.routing.received_at
            series.routing_duration.observe(seconds)
            if waited:
                metrics.routing_wait_seconds.observe(seconds, labels)
        if overflowed:
            metrics.spills_total.inc(labels)
        algorithm = self._valid.effective.algorithm
        series.selected(algorithm, fallback=chosen.rank_depth > 1)
        if chosen.skipped_for_kv:
            metrics.routing_kv_free_token_fallback_selections_total.inc((*labels, algorithm))
        if self._trace is not None:
            self._trace.chosen(chosen, now)

    def waits(self, remaining_ms: float) -> None:
        """The request waits because its algorithm asks for it; `remaining_ms` are left until it is refused."""
        _log.debug(
            "waiting for routing bucket eligibility",
            routing_key=self._valid.routing.routing_key,
            model_id=self._valid.routing.model,
            remaining_ms=round(remaining_ms),
        )

    def not_admitted(self, reason: str) -> None:
        """Input-work admission refused the request."""
        _log.warning(
            "rejecting request before routing due to input-work admission",
            routing_key=self._valid.routing.routing_key,
            model_id=self._valid.routing.model,
            rejection_reason=reason,
        )
        self._metrics.admission_rejections_total.inc((*self._labels, reason))
        if self._trace is not None:
            self._trace.not_admitted(reason)

    def without_capacity(self) -> None:
        """Clusters are left, and none of them has capacity for the request."""
        self._metrics.admission_rejections_total.inc((*self._labels, "routing_capacity_unavailable"))

    def unknown_target(self) -> None:
        """Nobody has registered the target: its names, which the client chose, are no labels from here on."""
        self._labels = UNKNOWN_TARGET
        self._series = None

    def nobody_left(self, retries: RetryState, finalization: str) -> None:
        """No eligible cluster is left; `finalization` names the answer."""
        details: dict[str, object] = {}
        if self._access_log.failures:
            details = {"finalization": finalization, "failed_cluster_count": len(retries.failed_clusters)}
        _log.warning(
            "no inference server candidates for routing target",
            routing_key=self._valid.routing.routing_key,
            model_id=self._valid.routing.model,
            failed_backend_count=len(retries.failed_backends),
            routing_retry_attempts=retries.routing_retries,
            **details,
        )
        if retries.excludes_anything:
            self.exhausted(retry.NO_ELIGIBLE_BACKEND)

    # --- attempts --------------------------------------------------------------------------------------------------

    def attempt_begins(self, backend: Backend, connect_retries: int, request_retries: int) -> None:
        """An attempt on this worker begins."""
        if self._trace is not None:
            self._trace.attempt_begins(backend)
        line = self._access_log.attempt
        if line.enabled:
            routing = self._valid.routing
            line.write(
                routing.routing_key,
                routing.model,
                routing.input_tokens,
                self._valid.requested_method,
                self._valid.effective.algorithm,
                backend.inference_server_id,
                backend.inference_server_url,
                connect_retries,
                request_retries,
            )

    def attempt_failed(self, backend: Backend, reason: str, held_bytes: int) -> None:
        """The attempt got no response head; `held_bytes` is the size of the replay copy."""
        server_id = backend.inference_server_id
        self._metrics.proxy_attempts_total.inc((*self._labels, server_id, "proxy_502"))
        self._metrics.proxy_replay_buffer_bytes.observe(held_bytes, (self._labels[1],))
        _log.warning("quic upstream request failed", inference_server_id=server_id, error=reason)
        if self._trace is not None:
            self._trace.attempt_failed(reason, held_bytes)

    def attempt_answered(self, backend: Backend, status: int, held_bytes: int, now: float) -> None:
        """The attempt got a response head, which may be final or retried; `held_bytes` is the size of the replay copy."""
        series = self._series
        if series is None:  # pragma: no cover - a worker was chosen
            return
        of_server = series.of_server(backend.inference_server_id)
        of_server.attempt_answered(status)
        series.replay_bytes.observe(held_bytes)
        of_server.duration.observe(now - self._received_at)
        if self._trace is not None:
            self._trace.attempt_answered(status, held_bytes, now)

    def retried(self, reason: str) -> None:
        """Another attempt follows because of `reason`."""
        self._metrics.proxy_retries_total.inc((*self._labels, reason))
        if self._trace is not None:
            self._trace.retried(reason)

    def retried_after_answer(self, backend: Backend, status: int, reason: str, request_retries: int) -> None:
        """Another attempt follows a retryable response of this worker."""
        self.retried(reason)
        _log.warning(
            "retrying request on a sibling backend after local queue mismatch"
            if reason == retry.QUEUE_ESTIMATE_MISMATCH
            else "retrying request after retryable upstream response",
            inference_server_id=backend.inference_server_id,
            cluster_id=backend.cluster_id,
            status=status,
            request_retries=request_retries,
            retry_reason=reason,
        )

    def exhausted(self, reason: str) -> None:
        """A retry is not made because of `reason`: a limit is used up."""
        self._metrics.proxy_retry_exhausted_total.inc((*self._labels, reason))

    def not_replayable(self, backend: Backend, status: int, reason: str, source: str) -> None:
        """A retry is not made because the request body cannot be replayed."""
        _log.warning(
            "not retrying because request body replay buffer is incomplete",
            inference_server_id=backend.inference_server_id,
            status=status,
            retry_reason=reason,
            source=source,
        )

    def accepted_already(self) -> None:
        """A retry is not made because the worker has received the whole request and could generate a second time."""
        self._metrics.accepted_not_repeated_total.inc(self._labels)

    def ambiguous_delivery(self) -> None:
        """A retry is not made because the whole request was handed to the tunnel and may have been processed."""
        self._metrics.proxy_ambiguous_delivery_total.inc(())

    # --- dialled workers -------------------------------------------------------------------------------------------

    def dials_again(self, backend: Backend, *, stale: bool) -> None:
        """A direct worker is dialled again: its connections were found closed (`stale`), or an attempt failed on them."""
        reason = "stale_connection" if stale else "proxy_error"
        self._metrics.quic_connection_evictions_total.inc((backend.inference_server_id, reason))

    def dialled_again(self, backend: Backend, connect_retries: int, error: str | None, *, stale: bool) -> None:
        """The dial succeeded, or failed with `error`."""
        server_id = backend.inference_server_id
        self._metrics.quic_hot_path_reconnect_total.inc((server_id, "success" if error is None else "error"))
        if error is None:
            self.retried(retry.HOT_PATH_RECONNECT)
            event = None if stale else "reconnected QUIC upstream after proxy failure"
        elif stale:
            event = "failed to reconnect stale QUIC upstream"
        else:
            self.retried(retry.CONNECT_FAILOVER)
            event = "failed to reconnect QUIC upstream"
        if event is not None:
            _log.warning(event, inference_server_id=server_id, connect_retries=connect_retries, error=error)

    # --- the end ---------------------------------------------------------------------------------------------------

    def answered(self, server_id: str, status: int) -> None:
        """The client gets this status from the worker `server_id`; empty for a local reply without a worker."""
        series = self._series
        if series is None or not server_id:
            self._metrics.requests_total.inc((*self._labels, server_id, str(status)))
        else:
            series.of_server(server_id).answered(status)

    def first_byte(self, now: float) -> None:
        """The head of a worker's response is sent to the client."""
        if self._series is not None:  # pragma: no branch - a worker was chosen
            self._series.first_byte.observe(now - self._received_at)

    def request_failed(
        self,
        backend: Backend,
        status: int,
        verdict: Verdict | None,
        head: ResponseHead | None,
        retries: RetryState,
        now: float,
    ) -> None:
        """The client gets `status` after the last attempt; the arguments are those of `log_failed_request`."""
        if self._access_log.failures:
            log_failed_request(self._valid, backend, status, verdict, head, retries, (now - self._received_at) * 1000)

    def broken_off(self, backend: Backend, reason: str, response: ResponseWriter) -> None:
        """The response failed after its head was sent."""
        self._metrics.midstream_failures_total.inc((*self._labels, backend.inference_server_id, "upstream"))
        if self._access_log.failures:
            _log.warning(
                "upstream response body stream failed",
                inference_server_id=backend.inference_server_id,
                status=response.status,
                streamed_bytes=response.body_bytes,
                error=reason,
            )
        else:
            _log.debug("response broken off", inference_server_id=backend.inference_server_id, error=reason)
        if self._trace is not None:
            self._trace.broken_off(reason)

    def client_gone(self, phase: str) -> None:
        """The client closed in this phase: during its `upload`, before the response `head`, or in the `body`."""
        self._metrics.client_aborts_total.inc((*self._labels, phase))

    def finished(
        self,
        request: ClientRequest,
        response: ResponseWriter,
        backend: Backend | None,
        attempts: int,
        first_byte_at: float | None,
        first_token_at: float | None,
        end: str,
        now: float,
        reason: str,
    ) -> None:
        """The request has ended; `end` is one of the values in `AccessLog`, `reason` that of a local reply, or empty."""
        received_at, valid = self._received_at, self._valid
        routing = valid.routing
        self._ends.request_ended(
            RequestEnd(
                ended_at=now,
                duration_s=now - received_at,
                first_token_s=None if first_token_at is None else first_token_at - received_at,
                request_id=valid.request_id,
                routing_key=routing.routing_key,
                model=routing.model,
                inference_server_id="" if backend is None else backend.inference_server_id,
                cluster_id="" if backend is None else backend.cluster_id,
                attempts=attempts,
                status=response.status,
                end=end,
                reason=reason,
                requested_method=valid.requested_method,
                input_tokens=routing.input_tokens or 0,
                priority=routing.priority,
            )
        )
        if self._series is None:
            self._metrics.request_duration_seconds.observe(now - received_at, self._labels)
        else:
            self._series.duration.observe(now - received_at)
        if self._trace is not None:
            self._trace.finished(response, end, now)
        line = self._access_log.finished
        if line.enabled:
            values = (
                self._valid.request_id,
                self._valid.routing.routing_key,
                self._valid.routing.model,
                request.path.decode("latin-1"),
                response.status,
                "" if backend is None else backend.inference_server_id,
                attempts,
                None if first_byte_at is None else round((first_byte_at - received_at) * 1000, 3),
                round((now - received_at) * 1000, 3),
                response.body_bytes,
                end,
            )
            if reason:
                self._access_log.refused.write(*values, reason)
            else:
                line.write(*values)
