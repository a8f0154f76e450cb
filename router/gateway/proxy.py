"""What becomes of one client request: route, attempt, retry or fail over, relay, give up.

A request is an object driven by callbacks (from its client, its exchange and timers), so that the common case costs no task.
The decisions and their order are those of docs/gateway.md, "Routing" and "Retries".
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

import structlog

from router.balancing import AdmissionRejected, Chosen, NotFound, Selector, Wait
from router.gateway import retry
from router.gateway.access_log import AccessLog
from router.gateway.attempt import Attempt
from router.gateway.proxy_settings import ProxySettings
from router.gateway.replay import Replay, ReplayBudget, ReplayBuffer
from router.gateway.request import ClientRequest
from router.gateway.response import Response
from router.gateway.spill import with_free_stream
from router.gateway.validation import InvalidRequestError, Validator, ValidRequest
from router.registry import Publication, Registry, Reservation, TargetKey
from router.registry.tunnel import TunnelError
from router.telemetry.metrics import Metrics
from tunnel_protocol.head import (
    ERROR_CODE,
    EXPECTED_QUEUE_MS,
    NOT_TO_CALLER,
    HeaderList,
    RequestHead,
    ResponseHead,
    request_headers_to_worker,
)

_log = structlog.get_logger()

_JSON: tuple[bytes, bytes] = (b"content-type", b"application/json")
_NO_CANDIDATES = b"no_eligible_candidates"
_NO_CANDIDATES_BODY = b'{"error":"no eligible candidates","code":"no_eligible_candidates"}'
_ADMISSION = b"input_work_limit_exceeded"
_ADMISSION_BODY = b'{"error":"input work admission limit exceeded","code":"input_work_limit_exceeded"}'
_SERVER_ID = b"x-inference-server-id"
_SERVER_URL = b"x-inference-server-url"
_CLUSTER_ID = b"x-stargate-cluster-id"
_NOT_PASSED_ON = NOT_TO_CALLER | {_SERVER_ID, _SERVER_URL, _CLUSTER_ID}


class Clock(Protocol):
    """Monotonic seconds."""

    def __call__(self) -> float:
        """Now."""


class Proxy:
    """What all proxied requests share."""

    def __init__(
        self,
        registry: Registry,
        selector: Selector,
        metrics: Metrics,
        settings: ProxySettings,
        clock: Clock,
    ) -> None:
        self.registry = registry
        self.selector = selector
        self.metrics = metrics
        self.settings = settings
        self.clock = clock
        self.validator = Validator(selector, settings)
        self.replay_budget = ReplayBudget(settings.max_replay_total_bytes, metrics.replay_budget_exhausted_total.inc)
        self.access_log = AccessLog(finished=settings.access_log)
        self.running: set[ProxiedRequest] = set()
        # Asking asyncio for the loop costs a system call each time; requests take it from here.
        self.loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()

    def handle(self, request: ClientRequest, response: Response) -> "ProxiedRequest | None":
        """Answer a request for a worker; None if it was refused at once."""
        try:
            valid = self.validator.validate(request)
        except InvalidRequestError as error:
            self.metrics.requests_rejected_total.inc((str(error.status), error.reason))
            response.send(error.status, [])
            return None
        proxied = ProxiedRequest(self, request, response, valid)
        self.running.add(proxied)
        proxied.route()
        return proxied

    def spawn(self, work: Coroutine[Any, Any, None], on_defect: Callable[[], None]) -> asyncio.Task[None]:
        """A supervised task of a request; should it ever raise, that is logged and `on_defect` called."""

        def ended(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            if not task.cancelled() and task.exception() is not None:
                _log.error("task of a request ended unexpectedly", exc_info=task.exception())
                on_defect()

        task = self.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(ended)
        return task


class ProxiedRequest:
    """Implements the flow of its response and the owner of its attempts."""

    __slots__ = (
        "_attempt",
        "_attempts",
        "_backend",
        "_chosen",
        "_connect_retries",
        "_failed_backends",
        "_failed_clusters",
        "_first_byte_at",
        "_headers",
        "_key",
        "_labels",
        "_over",
        "_paused",
        "_proxy",
        "_replay",
        "_request",
        "_request_retries",
        "_reservation",
        "_response",
        "_routing_retries",
        "_selected_before",
        "_task",
        "_valid",
        "_wait",
    )

    def __init__(self, proxy: Proxy, request: ClientRequest, response: Response, valid: ValidRequest) -> None:
        self._proxy = proxy
        self._request = request
        self._response = response
        self._valid = valid
        routing = valid.routing
        self._key = TargetKey(routing.routing_key, routing.model)
        self._labels = (routing.routing_key or "", routing.model)
        self._replay = ReplayBuffer(proxy.settings.max_replay_body_bytes, proxy.replay_budget)
        self._failed_backends: set[str] = set()
        self._failed_clusters: set[str] = set()
        self._connect_retries = 0
        self._request_retries = 0
        self._routing_retries = 0
        self._attempts = 0
        self._selected_before = False
        self._chosen: Chosen | None = None
        self._backend: Publication | None = None
        self._reservation: Reservation | None = None
        self._attempt: Attempt | None = None
        self._headers: HeaderList | None = None
        self._first_byte_at: float | None = None
        self._wait: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        self._paused = False
        self._over = False

    # --- routing ---------------------------------------------------------------------------------------------------

    def route(self) -> None:
        """Ask the policy, and do what it says."""
        self._wait = None
        proxy, routing = self._proxy, self._valid.routing
        now = proxy.clock()
        outcome = proxy.selector.select(
            self._valid.effective,
            routing,
            proxy.registry.target(self._key),
            advertised=self._advertised,
            failed_backends=self._failed_backends,
            failed_clusters=self._failed_clusters,
            now=now,
        )
        if isinstance(outcome, Chosen):
            self._enter(outcome, now)
        elif isinstance(outcome, Wait):
            self._routing_retries += 1
            self._wait = proxy.loop.call_later(outcome.seconds, self.route)
        elif isinstance(outcome, AdmissionRejected):
            _log.warning(
                "rejecting request before routing due to input-work admission",
                routing_key=routing.routing_key,
                model_id=routing.model,
                rejection_reason=outcome.reason,
            )
            proxy.metrics.admission_rejections_total.inc((*self._labels, outcome.reason))
            self._refuse(503, [_JSON, (ERROR_CODE, _ADMISSION)], _ADMISSION_BODY)
        else:
            self._no_candidates(known=not isinstance(outcome, NotFound))

    def _advertised(self) -> bool:
        return self._proxy.registry.is_advertised(self._key)

    def _no_candidates(self, *, known: bool) -> None:
        _log.warning(
            "no inference server candidates for routing target",
            routing_key=self._valid.routing.routing_key,
            model_id=self._valid.routing.model,
            failed_backend_count=len(self._failed_backends),
            routing_retry_attempts=self._routing_retries,
        )
        if self._failed_backends or self._failed_clusters:
            self._exhausted(retry.NO_ELIGIBLE_BACKEND)
        if known:
            self._refuse(503, [])
        else:
            self._refuse(404, [_JSON, (ERROR_CODE, _NO_CANDIDATES)], _NO_CANDIDATES_BODY)

    def _enter(self, chosen: Chosen, now: float) -> None:
        """A cluster was chosen: count it, and begin with the backend it gave."""
        metrics = self._proxy.metrics
        if not self._selected_before:
            self._selected_before = True
            waited = now - self._valid.routing.received_at
            metrics.routing_duration_seconds.observe(waited, self._labels)
            if self._routing_retries:
                metrics.routing_wait_seconds.observe(waited, self._labels)
        spilled = with_free_stream(chosen, self._failed_backends, self._select_elsewhere)
        if spilled is not chosen:
            metrics.spills_total.inc(self._labels)
            chosen = spilled
        selection = "fallback" if chosen.rank_depth > 1 else "primary"
        algorithm = self._valid.effective.algorithm
        metrics.routing_selections_total.inc((*self._labels, algorithm, selection))
        if chosen.skipped_for_kv:
            metrics.routing_kv_free_token_fallback_selections_total.inc((*self._labels, algorithm))
        self._chosen = chosen
        self._try(chosen.backend)

    def _select_elsewhere(self, excluded_clusters: set[str]) -> Chosen | None:
        proxy = self._proxy
        outcome = proxy.selector.select(
            self._valid.effective,
            self._valid.routing,
            proxy.registry.target(self._key),
            advertised=self._advertised,
            failed_backends=self._failed_backends,
            failed_clusters=self._failed_clusters | excluded_clusters,
            now=proxy.clock(),
        )
        return outcome if isinstance(outcome, Chosen) else None

    # --- attempts --------------------------------------------------------------------------------------------------

    def _try(self, backend: Publication) -> None:
        """One more attempt; a dialled worker whose connections are gone is dialled again first."""
        self._backend = backend
        tunnels = backend.registration.tunnels
        settings = self._proxy.settings
        if tunnels.direct and not tunnels.healthy() and self._connect_retries < settings.max_connect_retries:
            self._connect_retries += 1
            self._evict("stale_connection")
            self._task = self._proxy.spawn(self._reconnect_stale(backend), self._defect)
            return
        self._start_attempt(backend)

    def _start_attempt(self, backend: Publication) -> None:
        chosen = self._chosen
        if chosen is None:
            return
        self._attempts += 1
        routing = self._valid.routing
        self._reservation = chosen.candidate.cluster.reserve(backend, routing.input_tokens, routing.priority)
        line = self._proxy.access_log.attempt
        if line.enabled:
            line.write(
                routing.routing_key,
                routing.model,
                routing.input_tokens,
                self._valid.requested_method,
                self._valid.effective.algorithm,
                backend.inference_server_id,
                backend.inference_server_url,
                self._connect_retries,
                self._request_retries,
            )
        settings = self._proxy.settings
        attempt = Attempt(
            self,
            backend.registration.tunnels,
            self._request.body,
            self._replay,
            self._proxy.loop,
            idle_timeout_ms=settings.response_idle_timeout_ms,
        )
        self._attempt = attempt
        if self._paused:
            attempt.pause()
        attempt.start(self._request_head(chosen), settings.request_timeout_ms / 1000)

    def _request_head(self, chosen: Chosen) -> RequestHead:
        if self._headers is None:
            self._headers = request_headers_to_worker(self._request.headers)
        headers = self._headers
        if chosen.expected_queue_ms is not None:
            headers = [*headers, (EXPECTED_QUEUE_MS, b"%d" % chosen.expected_queue_ms)]
        return RequestHead(self._request.method, self._request.target, headers)

    async def _reconnect_stale(self, backend: Publication) -> None:
        try:
            await backend.registration.tunnels.reconnect()
        except TunnelError as error:
            self._reconnected("error")
            self._log_reconnect("failed to reconnect stale QUIC upstream", backend, error.reason)
            self._fail_backend(backend)
            return
        self._reconnected("success")
        self._count_retry(retry.HOT_PATH_RECONNECT)
        self._start_attempt(backend)

    async def _reconnect_failed(self, backend: Publication) -> None:
        try:
            await backend.registration.tunnels.reconnect()
        except TunnelError as error:
            self._reconnected("error")
            self._log_reconnect("failed to reconnect QUIC upstream", backend, error.reason)
            self._count_retry(retry.CONNECT_FAILOVER)
            self._fail_backend(backend)
            return
        self._reconnected("success")
        self._log_reconnect("reconnected QUIC upstream after proxy failure", backend, None)
        self._count_retry(retry.HOT_PATH_RECONNECT)
        self._start_attempt(backend)

    def _fail_backend(self, backend: Publication) -> None:
        """Not again on this backend: a sibling of the same cluster, else a new choice."""
        self._failed_backends.add(backend.inference_server_id)
        chosen = self._chosen
        if chosen is None:
            return
        sibling = chosen.candidate.cluster.pick(self._failed_backends)
        if sibling is None:
            self._failed_clusters.add(chosen.candidate.cluster_id)
            self.route()
        else:
            self._try(sibling)

    # --- AttemptOwner ----------------------------------------------------------------------------------------------

    def attempt_failed(self, error: TunnelError) -> None:
        """No head came: the synthetic 502, final or another attempt."""
        backend = self._backend
        if self._over or backend is None:
            return
        metrics, settings = self._proxy.metrics, self._proxy.settings
        metrics.proxy_attempts_total.inc((*self._labels, backend.inference_server_id, "proxy_502"))
        metrics.proxy_replay_buffer_bytes.observe(self._replay.held_bytes, (self._labels[1],))
        _log.warning(
            "quic upstream request failed", inference_server_id=backend.inference_server_id, error=error.reason
        )
        if self._budget_spent():
            self._exhausted(retry.BUDGET_EXHAUSTED)
            self._answer(502)
        elif self._connect_retries >= settings.max_connect_retries:
            self._exhausted(retry.CONNECT_RETRIES_EXHAUSTED)
            self._answer(502)
        elif self._replay.state is Replay.TOO_LARGE:
            self._answer(413)
        elif self._replay.state is Replay.INCOMPLETE:
            self._log_not_replayable(502, "retryable_proxy_error", "proxy error")
            self._answer(502)
        elif settings.no_repeat_accepted and error.accepted:
            metrics.accepted_not_repeated_total.inc(self._labels)
            self._answer(502)
        else:
            self._retry_after_failure(backend)

    def _retry_after_failure(self, backend: Publication) -> None:
        self._connect_retries += 1
        if backend.registration.tunnels.direct:
            self._evict("proxy_error")
            self._task = self._proxy.spawn(self._reconnect_failed(backend), self._defect)
        else:
            self._count_retry(retry.CONNECT_FAILOVER)
            self._fail_backend(backend)

    def attempt_answered(self, head: ResponseHead) -> None:
        """A head came: final, or another attempt elsewhere."""
        backend, attempt = self._backend, self._attempt
        if self._over or backend is None or attempt is None:
            return
        metrics, settings = self._proxy.metrics, self._proxy.settings
        server_id = backend.inference_server_id
        now = self._proxy.clock()
        metrics.proxy_attempts_total.inc((*self._labels, server_id, f"upstream_{head.status}"))
        metrics.proxy_replay_buffer_bytes.observe(self._replay.held_bytes, (self._labels[1],))
        metrics.proxy_duration_seconds.observe(now - self._request.received_at, (*self._labels, server_id))
        if self._reservation is not None and retry.releases_reservation(head):
            self._reservation.release()
        reason = retry.retry_reason(head, signal_required=settings.require_retry_signal)
        if reason is None:
            self._pass_on(head, backend, attempt, now)
        elif self._budget_spent():
            self._exhausted(retry.BUDGET_EXHAUSTED)
            self._pass_on(head, backend, attempt, now)
        elif self._request_retries >= settings.max_request_retries:
            self._exhausted(reason)
            self._pass_on(head, backend, attempt, now)
        elif self._replay.state is Replay.TOO_LARGE:
            attempt.discard()
            self._answer(413)
        elif self._replay.state is Replay.INCOMPLETE:
            self._log_not_replayable(head.status, reason, "response")
            self._pass_on(head, backend, attempt, now)
        else:
            attempt.discard()
            self._retry_after_answer(head.status, reason, backend)

    def _retry_after_answer(self, status: int, reason: str, backend: Publication) -> None:
        self._request_retries += 1
        self._count_retry(reason)
        sibling = reason == retry.QUEUE_ESTIMATE_MISMATCH
        _log.warning(
            "retrying request on a sibling backend after local queue mismatch"
            if sibling
            else "retrying request after retryable upstream response",
            inference_server_id=backend.inference_server_id,
            cluster_id=backend.cluster_id,
            status=status,
            request_retries=self._request_retries,
            retry_reason=reason,
        )
        if sibling:
            self._fail_backend(backend)
        else:
            self._failed_clusters.add(backend.cluster_id)
            self.route()

    def response_ended(self, failure: str | None) -> None:
        """The relayed response is over."""
        if failure is not None and self._backend is not None:
            self._proxy.metrics.midstream_failures_total.inc(
                (*self._labels, self._backend.inference_server_id, "upstream")
            )
            _log.debug("response broken off", inference_server_id=self._backend.inference_server_id, error=failure)
        self._finish("complete" if failure is None else "truncated")

    # --- ResponseFlow ----------------------------------------------------------------------------------------------

    def pause_response(self) -> None:
        """The client is slow."""
        self._paused = True
        if self._attempt is not None:
            self._attempt.pause()

    def resume_response(self) -> None:
        """The client has caught up."""
        self._paused = False
        if self._attempt is not None:
            self._attempt.resume()

    def client_gone(self) -> None:
        """Nobody waits for the answer any more."""
        if self._over:
            return
        phase = "body" if self._response.started else ("head" if self._request.body.complete else "upload")
        self._proxy.metrics.client_aborts_total.inc((*self._labels, phase))
        if self._attempt is not None:
            self._attempt.discard()
        self._finish("client_gone")

    # --- answers ---------------------------------------------------------------------------------------------------

    def _pass_on(self, head: ResponseHead, backend: Publication, attempt: Attempt, now: float) -> None:
        """The answer is the client's: send its head and relay what follows."""
        server_id = backend.inference_server_id
        self._count_request(server_id, head.status)
        try:
            ours = [
                (_SERVER_ID, _header_value(server_id)),
                (_SERVER_URL, _header_value(backend.inference_server_url)),
                (_CLUSTER_ID, _header_value(backend.cluster_id)),
            ]
        except ValueError:
            attempt.discard()
            self._response.send(500, [])
            self._finish("failed")
            return
        headers = [entry for entry in head.headers if entry[0] not in _NOT_PASSED_ON]
        headers += ours
        self._first_byte_at = now
        self._replay.close()  # nothing is retried from here on
        self._proxy.metrics.request_first_byte_seconds.observe(now - self._request.received_at, self._labels)
        self._response.start(head.status, headers)
        attempt.relay(self._response)

    def _defect(self) -> None:
        if not self._over:
            self._answer(502)

    def _answer(self, status: int) -> None:
        """An answer of our own about an attempt that was made."""
        backend = self._backend
        self._count_request("" if backend is None else backend.inference_server_id, status)
        self._response.send(status, [])
        self._finish("failed")

    def _refuse(self, status: int, headers: HeaderList, body: bytes = b"") -> None:
        """An answer of our own because there is nobody to ask."""
        self._count_request("", status)
        self._response.send(status, headers, body)
        self._finish("refused")

    def _finish(self, end: str) -> None:
        if self._over:
            return
        self._over = True
        self._replay.close()
        if self._wait is not None:
            self._wait.cancel()
            self._wait = None
        if self._task is not None and end == "client_gone":
            self._task.cancel()
        self._task = None
        self._attempt = None
        proxy = self._proxy
        proxy.running.discard(self)
        now, received_at = proxy.clock(), self._request.received_at
        proxy.metrics.request_duration_seconds.observe(now - received_at, self._labels)
        line = proxy.access_log.finished
        if line.enabled:
            line.write(
                self._valid.request_id,
                self._valid.routing.routing_key,
                self._valid.routing.model,
                self._request.path.decode("latin-1"),
                self._response.status,
                "" if self._backend is None else self._backend.inference_server_id,
                self._attempts,
                None if self._first_byte_at is None else round((self._first_byte_at - received_at) * 1000, 3),
                round((now - received_at) * 1000, 3),
                self._response.body_bytes,
                end,
            )

    # --- counting --------------------------------------------------------------------------------------------------

    def _budget_spent(self) -> bool:
        deadline = self._valid.retry_deadline
        return deadline is not None and self._proxy.clock() >= deadline

    def _count_request(self, server_id: str, status: int) -> None:
        self._proxy.metrics.requests_total.inc((*self._labels, server_id, str(status)))

    def _count_retry(self, reason: str) -> None:
        self._proxy.metrics.proxy_retries_total.inc((*self._labels, reason))

    def _exhausted(self, reason: str) -> None:
        self._proxy.metrics.proxy_retry_exhausted_total.inc((*self._labels, reason))

    def _evict(self, reason: str) -> None:
        if self._backend is not None:
            self._proxy.metrics.quic_connection_evictions_total.inc((self._backend.inference_server_id, reason))

    def _reconnected(self, result: str) -> None:
        self._task = None
        if self._backend is not None:
            self._proxy.metrics.quic_hot_path_reconnect_total.inc((self._backend.inference_server_id, result))

    def _log_reconnect(self, event: str, backend: Publication, error: str | None) -> None:
        _log.warning(
            event,
            inference_server_id=backend.inference_server_id,
            connect_retries=self._connect_retries,
            error=error,
        )

    def _log_not_replayable(self, status: int, reason: str, source: str) -> None:
        _log.warning(
            "not retrying because request body replay buffer is incomplete",
            inference_server_id="" if self._backend is None else self._backend.inference_server_id,
            status=status,
            retry_reason=reason,
            source=source,
        )


def _header_value(value: str) -> bytes:
    """`value` as a header value. Raises `ValueError` if it cannot be one."""
    if value.isascii() and value.isprintable():
        return value.encode()
    if any((ord(character) < 0x20 and character != "\t") or ord(character) == 0x7F for character in value):
        message = "control character in a header value"
        raise ValueError(message)
    return value.encode()
