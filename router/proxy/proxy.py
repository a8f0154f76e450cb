"""What becomes of one client request: route, attempt, retry or fail over, relay, give up.

A request is an object driven by callbacks (from its client, its exchange and timers), so that the common case costs no task.
The decisions and their order are those of docs/proxy.md, "Routing" and "Retries".
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

import structlog

from router.balancing import AdmissionRejected, Chosen, NotFound, Selector, Wait
from router.http1.request import ClientRequest
from router.http1.response import Response
from router.ports.tunnels import TunnelError
from router.proxy import retry
from router.proxy.access_log import AccessLog
from router.proxy.attempt import Attempt
from router.proxy.local_replies import NO_CANDIDATES, TOO_MUCH_INPUT_WORK, UNAVAILABLE, OwnAnswer, headers_to_client
from router.proxy.overflow import RoutedChoice, with_free_stream
from router.proxy.recorder import RequestAccount
from router.proxy.replay import ReplayBudget, ReplayBuffer
from router.proxy.retry import Verdict
from router.proxy.settings import ProxySettings
from router.proxy.validation import InvalidRequestError, Validator, ValidRequest
from router.registry import Backend, Registry, Reservation, TargetKey
from router.telemetry.metrics import Metrics
from tunnel_protocol.head import EXPECTED_QUEUE_MS, HeaderList, RequestHead, ResponseHead, request_headers_to_worker

_log = structlog.get_logger()


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
        "_account",
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
        "_over",
        "_paused",
        "_proxy",
        "_replay",
        "_request",
        "_request_retries",
        "_reservation",
        "_response",
        "_routing_retries",
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
        self._account = RequestAccount(proxy.metrics, proxy.access_log, valid, request.received_at)
        self._replay = ReplayBuffer(proxy.settings.max_replay_body_bytes, proxy.replay_budget)
        self._failed_backends: set[str] = set()
        self._failed_clusters: set[str] = set()
        self._connect_retries = 0
        self._request_retries = 0
        self._routing_retries = 0
        self._attempts = 0
        self._chosen: RoutedChoice | None = None
        self._backend: Backend | None = None
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
            self._account.not_admitted(outcome.reason)
            self._refuse(TOO_MUCH_INPUT_WORK)
        else:
            self._account.nobody_left(
                failed_backends=len(self._failed_backends),
                routing_retries=self._routing_retries,
                after_failures=bool(self._failed_backends or self._failed_clusters),
            )
            self._refuse(NO_CANDIDATES if isinstance(outcome, NotFound) else UNAVAILABLE)

    def _advertised(self) -> bool:
        return self._proxy.registry.is_advertised(self._key)

    def _enter(self, chosen: RoutedChoice, now: float) -> None:
        """A cluster was chosen: begin with the backend it gave, or another one that has a free stream."""
        asked = with_free_stream(chosen, self._failed_backends, self._select_elsewhere)
        self._account.chosen(asked, now, self._routing_retries > 0, asked is not chosen)
        self._chosen = asked
        self._try(asked.backend)

    def _select_elsewhere(self, excluded_clusters: set[str]) -> RoutedChoice | None:
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

    def _try(self, backend: Backend) -> None:
        """One more attempt; a dialled worker whose connections are gone is dialled again first."""
        self._backend = backend
        tunnels = backend.registration.tunnels
        settings = self._proxy.settings
        if tunnels.direct and not tunnels.healthy() and self._connect_retries < settings.max_connect_retries:
            self._connect_retries += 1
            self._account.dials_again(backend, stale=True)
            self._task = self._proxy.spawn(self._dial_again(backend, stale=True), self._defect)
            return
        self._start_attempt(backend)

    def _start_attempt(self, backend: Backend) -> None:
        chosen = self._chosen
        if chosen is None:
            return
        self._attempts += 1
        routing = self._valid.routing
        self._reservation = chosen.cluster.reserve(backend, routing.input_tokens or 0, routing.priority)
        self._account.attempt_begins(backend, self._connect_retries, self._request_retries)
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

    def _request_head(self, chosen: RoutedChoice) -> RequestHead:
        if self._headers is None:
            self._headers = request_headers_to_worker(self._request.headers)
        headers = self._headers
        if chosen.expected_queue_ms is not None:
            headers = [*headers, (EXPECTED_QUEUE_MS, b"%d" % chosen.expected_queue_ms)]
        return RequestHead(self._request.method, self._request.target, headers)

    async def _dial_again(self, backend: Backend, *, stale: bool) -> None:
        """Replace the connections to a worker, `stale` ones before an attempt; then ask it, or if that fails the next one."""
        error = None
        try:
            await backend.registration.tunnels.reconnect()
        except TunnelError as raised:
            error = raised.reason
        self._task = None
        self._account.dialled_again(backend, self._connect_retries, error, stale=stale)
        if error is None:
            self._start_attempt(backend)
        else:
            self._fail_backend(backend)

    def _fail_backend(self, backend: Backend) -> None:
        """Not again on this backend: a sibling of the same cluster, else a new choice."""
        self._failed_backends.add(backend.inference_server_id)
        chosen = self._chosen
        if chosen is None:
            return
        sibling = chosen.cluster.pick(self._failed_backends)
        if sibling is None:
            self._failed_clusters.add(chosen.cluster.cluster_id)
            self.route()
        else:
            self._try(sibling)

    # --- AttemptOwner ----------------------------------------------------------------------------------------------

    def attempt_failed(self, error: TunnelError) -> None:
        """No head came: the synthetic 502, final or another attempt."""
        backend = self._backend
        if self._over or backend is None:
            return
        account, settings, replay = self._account, self._proxy.settings, self._replay
        account.attempt_failed(backend, error.reason, replay.held_bytes)
        verdict = retry.verdict(
            budget_over=self._budget_over(),
            retries_left=self._connect_retries < settings.max_connect_retries,
            replay=replay.state,
            accepted=settings.no_repeat_accepted and error.accepted,
        )
        if verdict is Verdict.AGAIN:
            self._retry_after_failure(backend)
            return
        if verdict is Verdict.BUDGET_OVER:
            account.exhausted(retry.BUDGET_EXHAUSTED)
        elif verdict is Verdict.RETRIES_USED_UP:
            account.exhausted(retry.CONNECT_RETRIES_EXHAUSTED)
        elif verdict is Verdict.INCOMPLETE:
            account.not_replayable(backend, 502, "retryable_proxy_error", "proxy error")
        elif verdict is Verdict.ACCEPTED:
            account.accepted_already()
        self._answer(413 if verdict is Verdict.TOO_LARGE else 502)

    def _retry_after_failure(self, backend: Backend) -> None:
        self._connect_retries += 1
        if backend.registration.tunnels.direct:
            self._account.dials_again(backend, stale=False)
            self._task = self._proxy.spawn(self._dial_again(backend, stale=False), self._defect)
        else:
            self._account.retried(retry.CONNECT_FAILOVER)
            self._fail_backend(backend)

    def attempt_answered(self, head: ResponseHead) -> None:
        """A head came: final, or another attempt elsewhere."""
        backend, attempt = self._backend, self._attempt
        if self._over or backend is None or attempt is None:
            return
        account, settings, replay = self._account, self._proxy.settings, self._replay
        now = self._proxy.clock()
        account.attempt_answered(backend, head.status, replay.held_bytes, now)
        if self._reservation is not None and retry.releases_reservation(head):
            self._reservation.release()
        reason = retry.retry_reason(head, signal_required=settings.require_retry_signal)
        if reason is None:
            self._pass_on(head, backend, attempt, now)
            return
        verdict = retry.verdict(
            budget_over=self._budget_over(),
            retries_left=self._request_retries < settings.max_request_retries,
            replay=replay.state,
        )
        if verdict is Verdict.AGAIN:
            attempt.discard()
            self._retry_after_answer(head.status, reason, backend)
        elif verdict is Verdict.TOO_LARGE:
            attempt.discard()
            self._answer(413)
        else:
            if verdict is Verdict.INCOMPLETE:
                account.not_replayable(backend, head.status, reason, "response")
            else:
                account.exhausted(retry.BUDGET_EXHAUSTED if verdict is Verdict.BUDGET_OVER else reason)
            self._pass_on(head, backend, attempt, now)

    def _retry_after_answer(self, status: int, reason: str, backend: Backend) -> None:
        self._request_retries += 1
        self._account.retried_after_answer(backend, status, reason, self._request_retries)
        if reason == retry.QUEUE_ESTIMATE_MISMATCH:
            self._fail_backend(backend)
        else:
            self._failed_clusters.add(backend.cluster_id)
            self.route()

    def response_ended(self, failure: str | None) -> None:
        """The relayed response is over."""
        if failure is not None and self._backend is not None:
            self._account.broken_off(self._backend, failure)
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
        self._account.client_gone(phase)
        if self._attempt is not None:
            self._attempt.discard()
        self._finish("client_gone")

    # --- answers ---------------------------------------------------------------------------------------------------

    def _pass_on(self, head: ResponseHead, backend: Backend, attempt: Attempt, now: float) -> None:
        """The answer is the client's: send its head and relay what follows."""
        self._account.answered(backend.inference_server_id, head.status)
        try:
            headers = headers_to_client(head.headers, backend)
        except ValueError:
            attempt.discard()
            self._response.send(500, [])
            self._finish("failed")
            return
        self._first_byte_at = now
        self._replay.close()  # nothing is retried from here on
        self._account.first_byte(now)
        self._response.start(head.status, headers)
        attempt.relay(self._response)

    def _defect(self) -> None:
        if not self._over:
            self._answer(502)

    def _answer(self, status: int) -> None:
        """An answer of our own about an attempt that was made."""
        backend = self._backend
        self._account.answered("" if backend is None else backend.inference_server_id, status)
        self._response.send(status, [])
        self._finish("failed")

    def _refuse(self, answer: OwnAnswer) -> None:
        """An answer of our own because there is nobody to ask."""
        self._account.answered("", answer.status)
        self._response.send(answer.status, answer.headers, answer.body)
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
        self._account.finished(
            self._request, self._response, self._backend, self._attempts, self._first_byte_at, end, proxy.clock()
        )

    def _budget_over(self) -> bool:
        deadline = self._valid.retry_deadline
        return deadline is not None and self._proxy.clock() >= deadline
