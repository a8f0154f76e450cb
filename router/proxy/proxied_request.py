"""Drives one client request: route, attempt, retry or fail over, relay, answer.

A request is an object driven by callbacks (from its client connection, its exchange and timers), so that the common case
needs no task. Source of the decisions and their order: docs/proxy.md, "Routing" and "Retries".
"""

import asyncio
from enum import IntEnum
from typing import Final

import structlog

from router.balancing import AdmissionRejected, Chosen, NotFound, Wait
from router.http1.request import ClientRequest
from router.http1.response import ResponseWriter
from router.ports.tunnels import TunnelError
from router.proxy import retry
from router.proxy.attempt import Attempt, AttemptCallbacks
from router.proxy.failure_log import is_failure
from router.proxy.local_replies import (
    AMBIGUOUS,
    NO_ANSWER,
    NO_CANDIDATES,
    NOT_FORWARDABLE,
    NOT_REPEATABLE,
    OVERLOADED,
    TOO_MUCH_INPUT_WORK,
    UNAVAILABLE,
    LocalReply,
    headers_to_client,
    plain,
)
from router.proxy.overflow import with_free_stream
from router.proxy.placement import Placement, RoutedChoice
from router.proxy.proxy_context import ProxyContext
from router.proxy.recorder import RequestRecorder
from router.proxy.replay import ReplayBuffer, ReplayState
from router.proxy.retry import Verdict
from router.proxy.retry_state import RetryState
from router.proxy.validation import ValidRequest
from router.registry import target_key
from tunnel_protocol.head import (
    EXPECTED_QUEUE_MS,
    HeaderList,
    RequestHead,
    ResponseHead,
    request_headers_to_worker,
)

_log = structlog.get_logger()


class RequestState(IntEnum):
    """The state of a proxied request; it only increases."""

    PENDING = 0
    """No response head yet: a worker is being chosen, dialled or tried."""

    RELAYING = 1
    """The head of a worker's response was sent to the client; its body is being relayed. Nothing is retried any more."""

    OVER = 2
    """The response is complete or broken off, or the client has closed."""


# Bound once: looking a member up in its enum takes as long as ten such comparisons (Python 3.11), and these run for every chunk.
_PENDING: Final = RequestState.PENDING
_OVER: Final = RequestState.OVER
_RELAYING: Final = RequestState.RELAYING


class ProxiedRequest(AttemptCallbacks):
    """One request; implements `ResponseFlow` and `AttemptCallbacks`."""

    __slots__ = (
        "_attempt",
        "_dialling",
        "_first_byte_at",
        "_first_token_at",
        "_headers",
        "_key",
        "_paused",
        "_placement",
        "_proxy",
        "_recorder",
        "_replay",
        "_request",
        "_response",
        "_retry_state",
        "_routing_timer",
        "_state",
        "_valid",
    )

    def __init__(
        self, proxy: ProxyContext, request: ClientRequest, response: ResponseWriter, valid: ValidRequest
    ) -> None:
        self._proxy = proxy
        self._request = request
        self._response = response
        self._valid = valid
        routing = valid.routing
        self._key = target_key(routing.routing_key, routing.model)
        self._state = _PENDING
        self._replay = ReplayBuffer(proxy.settings.max_replay_body_bytes, proxy.replay_budget)
        self._retry_state = RetryState(proxy.settings, valid.retry_deadline)
        trace = None if proxy.tracing is None else proxy.tracing.begin(request, valid, self._retry_state)
        self._recorder = RequestRecorder(
            proxy.metrics, proxy.request_series, proxy.access_log, valid, request.received_at, trace, proxy.request_ends
        )
        self._placement: Placement | None = None
        self._attempt: Attempt | None = None
        self._headers: HeaderList | None = None
        self._first_byte_at: float | None = None
        self._first_token_at: float | None = None
        self._routing_timer: asyncio.TimerHandle | None = None
        self._dialling: asyncio.Task[None] | None = None
        self._paused = False

    def placed(self) -> tuple[str | None, str, str]:
        """Routing key, model, and the worker that was chosen last; empty while none is."""
        server_id = "" if self._placement is None else self._placement.backend.inference_server_id
        return self._key.routing_key, self._key.model, server_id

    # --- routing ---------------------------------------------------------------------------------------------------

    def route(self) -> None:
        """Ask the selector for a choice, and place the request, wait or answer."""
        self._routing_timer = None
        proxy, retries = self._proxy, self._retry_state
        now = proxy.clock()
        outcome = proxy.selector.select(
            self._valid.effective,
            self._valid.routing,
            proxy.registry.target(self._key),
            advertised=self._advertised,
            failed_backends=retries.failed_backends,
            failed_clusters=retries.failed_clusters,
            now=now,
        )
        if isinstance(outcome, Chosen):
            self._place(outcome, now)
        elif isinstance(outcome, Wait):
            retries.routing_retries += 1
            if outcome.remaining_ms is not None:
                self._recorder.waits(outcome.remaining_ms)
            self._routing_timer = proxy.loop.call_later(outcome.seconds, self.route)
        elif isinstance(outcome, AdmissionRejected):
            self._recorder.not_admitted(outcome.reason)
            self._refuse(OVERLOADED if proxy.settings.overload_answer else TOO_MUCH_INPUT_WORK)
        else:
            if isinstance(outcome, NotFound):
                answer, finalization = NO_CANDIDATES, "no_eligible_candidates"
                if proxy.settings.unknown_targets_unlabelled:
                    self._recorder.unknown_target()
            elif proxy.settings.overload_answer and (outcome.at_capacity or retries.refused_for_capacity):
                answer, finalization = OVERLOADED, "overloaded_error"
                if outcome.at_capacity:
                    self._recorder.without_capacity()
            else:
                answer, finalization = UNAVAILABLE, "unavailable"
            self._recorder.nobody_left(retries, finalization)
            self._refuse(answer)

    def _advertised(self) -> bool:
        return self._proxy.registry.is_advertised(self._key)

    def _place(self, chosen: RoutedChoice, now: float) -> None:
        """A cluster was chosen: try its worker, or another one that has a free stream."""
        retries = self._retry_state
        asked = with_free_stream(chosen, retries.failed_backends, self._select_elsewhere)
        self._recorder.chosen(asked, now, retries.routing_retries > 0, asked is not chosen)
        placement = self._placement = Placement(asked)
        self._try(placement)

    def _select_elsewhere(self, excluded_clusters: set[str]) -> RoutedChoice | None:
        proxy, retries = self._proxy, self._retry_state
        outcome = proxy.selector.select(
            self._valid.effective,
            self._valid.routing,
            proxy.registry.target(self._key),
            advertised=self._advertised,
            failed_backends=retries.failed_backends,
            failed_clusters=retries.failed_clusters | excluded_clusters,
            now=proxy.clock(),
        )
        return outcome if isinstance(outcome, Chosen) else None

    # --- attempts --------------------------------------------------------------------------------------------------

    def _try(self, placement: Placement) -> None:
        """Start an attempt; a direct worker whose connections are closed is dialled again first."""
        tunnels, retries = placement.backend.registration.tunnels, self._retry_state
        if tunnels.direct and not tunnels.healthy() and retries.may_connect_again:
            retries.connect_retries += 1
            self._dial_again(placement, stale=True)
        else:
            self._start_attempt(placement)

    def _start_attempt(self, placement: Placement) -> None:
        retries, routing, settings = self._retry_state, self._valid.routing, self._proxy.settings
        retries.attempts += 1
        placement.reserve(routing.input_tokens, routing.priority)
        self._recorder.attempt_begins(placement.backend, retries.connect_retries, retries.request_retries)
        attempt = Attempt(
            self,
            placement.backend.registration.tunnels,
            self._request.body,
            self._replay,
            self._proxy.loop,
            self._proxy.head_deadlines,
            idle_timeout_ms=settings.response_idle_timeout_ms,
        )
        self._attempt = attempt
        if self._paused:
            attempt.pause()
        attempt.start(self._request_head(placement.choice))

    def _request_head(self, chosen: RoutedChoice) -> RequestHead:
        if self._headers is None:
            settings = self._proxy.settings
            self._headers = request_headers_to_worker(
                self._request.headers, settings.not_to_worker, listed=settings.drop_listed_headers
            )
        headers = self._headers
        if chosen.expected_queue_ms is not None:
            headers = [*headers, (EXPECTED_QUEUE_MS, b"%d" % chosen.expected_queue_ms)]
        return RequestHead(self._request.method, self._request.target, self._recorder.traced(headers))

    def _dial_again(self, placement: Placement, *, stale: bool) -> None:
        self._recorder.dials_again(placement.backend, stale=stale)
        self._dialling = self._proxy.spawn(self._dial(placement, stale=stale), self._defect)

    async def _dial(self, placement: Placement, *, stale: bool) -> None:
        """Replace the connections to a direct worker, then try it; if the dial fails, try the next worker.

        `stale`: the connections were found closed before an attempt, not by a failed one.
        """
        error = None
        try:
            await placement.backend.registration.tunnels.reconnect()
        except TunnelError as raised:
            error = raised.reason
        self._dialling = None
        self._recorder.dialled_again(placement.backend, self._retry_state.connect_retries, error, stale=stale)
        if error is None:
            self._start_attempt(placement)
        else:
            self._fail_backend(placement)

    def _fail_backend(self, placement: Placement) -> None:
        """Exclude this worker: try another one of the same cluster, else route again."""
        retries = self._retry_state
        retries.failed_backends.add(placement.backend.inference_server_id)
        if placement.sibling(retries.failed_backends) is None:
            retries.failed_clusters.add(placement.choice.cluster.cluster_id)
            self.route()
        else:
            self._try(placement)

    # --- AttemptCallbacks ------------------------------------------------------------------------------------------

    def attempt_failed(self, error: TunnelError, *, handed_over: bool) -> None:
        """The attempt got no response head: try again, or answer 502."""
        if self._state is _OVER:
            return
        placement = self._placement
        if placement is None:
            self._defect()
            return
        recorder, replay = self._recorder, self._replay
        self._retry_state.refused_for_capacity = False
        recorder.attempt_failed(placement.backend, error.reason, replay.held_bytes)
        verdict = self._retry_state.after_failure(error, replay, self._proxy.clock(), handed_over=handed_over)
        if verdict is Verdict.AGAIN:
            self._retry_after_failure(placement)
            return
        if verdict is Verdict.BUDGET_OVER:
            recorder.exhausted(retry.BUDGET_EXHAUSTED)
        elif verdict is Verdict.RETRIES_USED_UP:
            recorder.exhausted(retry.CONNECT_RETRIES_EXHAUSTED)
        elif verdict is Verdict.INCOMPLETE:
            recorder.not_replayable(placement.backend, 502, retry.PROXY_ERROR, "proxy error")
        elif verdict is Verdict.ACCEPTED:
            recorder.accepted_already()
        elif verdict is Verdict.AMBIGUOUS:
            recorder.ambiguous_delivery()
        self._fail(verdict, None, placement)

    def _retry_after_failure(self, placement: Placement) -> None:
        self._retry_state.connect_retries += 1
        if placement.backend.registration.tunnels.direct:
            self._dial_again(placement, stale=False)
        else:
            self._recorder.retried(retry.CONNECT_FAILOVER)
            self._fail_backend(placement)

    def attempt_answered(self, head: ResponseHead) -> None:
        """The attempt got a response head: relay it, or try another worker."""
        if self._state is _OVER:
            return
        placement, attempt = self._placement, self._attempt
        if placement is None or attempt is None:
            self._defect()
            return
        recorder, settings, replay = self._recorder, self._proxy.settings, self._replay
        now = self._proxy.clock()
        recorder.attempt_answered(placement.backend, head.status, replay.held_bytes, now)
        once = settings.retry_signal_once
        if retry.releases_reservation(head, signal_once=once):
            placement.release()
        reason = retry.retry_reason(head, signal_required=settings.require_retry_signal, signal_once=once)
        if reason is None:
            self._pass_on(head, placement, attempt, now)
            return
        refused = self._retry_state.refused_for_capacity = retry.refused_for_capacity(head)
        verdict = self._retry_state.after_answer(replay, now)
        if verdict is Verdict.AGAIN:
            attempt.discard()
            self._retry_after_answer(head.status, reason, placement)
        elif verdict is Verdict.TOO_LARGE:
            attempt.discard()
            self._fail(verdict, head, placement)
        else:
            if verdict is Verdict.INCOMPLETE:
                recorder.not_replayable(placement.backend, head.status, reason, "response")
            else:
                recorder.exhausted(retry.BUDGET_EXHAUSTED if verdict is Verdict.BUDGET_OVER else reason)
            if not refused or not settings.overload_answer:
                self._pass_on(head, placement, attempt, now, verdict)
                return
            attempt.discard()
            if replay.state is ReplayState.TOO_LARGE:
                self._fail(Verdict.TOO_LARGE, head, placement)
            else:
                recorder.request_failed(placement.backend, 503, verdict, head, self._retry_state, now)
                self._refuse(OVERLOADED, placement.backend.inference_server_id)

    def _retry_after_answer(self, status: int, reason: str, placement: Placement) -> None:
        retries = self._retry_state
        retries.request_retries += 1
        self._recorder.retried_after_answer(placement.backend, status, reason, retries.request_retries)
        if reason == retry.QUEUE_ESTIMATE_MISMATCH:
            self._fail_backend(placement)
        else:
            retries.failed_clusters.add(placement.backend.cluster_id)
            self.route()

    def body_begun(self) -> None:
        """The first piece of the response body has arrived: the first token, where the response is a stream of them."""
        self._first_token_at = self._proxy.clock()

    def response_ended(self, failure: str | None) -> None:
        """The relayed response has ended."""
        if failure is not None and self._placement is not None:
            self._recorder.broken_off(self._placement.backend, failure, self._response)
        self._finish("complete" if failure is None else "truncated", "")

    # --- ResponseFlow ----------------------------------------------------------------------------------------------

    def pause_response(self) -> None:
        """The client reads slower than the response is written."""
        self._paused = True
        if self._attempt is not None:
            self._attempt.pause()

    def resume_response(self) -> None:
        """The client reads again."""
        self._paused = False
        if self._attempt is not None:
            self._attempt.resume()

    def client_gone(self) -> None:
        """The client has closed: end the running attempt and finish."""
        if self._state is _OVER:
            return
        self._leave("body" if self._response.started else ("head" if self._request.body.complete else "upload"))
        self._finish("client_gone", "")

    def client_stalled(self, status: int, reason: str) -> None:
        """The client has stopped sending its body: end the running attempt, and answer."""
        if self._state is _OVER:
            return
        reply = plain(status, reason)
        self._leave("upload")
        self._proxy.refusals.record(self._request, reply)
        self._send(reply)
        self._finish("refused", reply.reason)

    def abandon(self, reason: str) -> None:
        """End the request without an answer from here: its owner has answered, or will, for `reason`."""
        if self._state is _OVER:
            return
        self._stop()
        self._finish("failed", reason)

    def _leave(self, phase: str) -> None:
        """End what runs for a client that has gone in this phase of its request."""
        self._recorder.client_gone(phase)
        self._stop()

    def _stop(self) -> None:
        if self._attempt is not None:
            self._attempt.discard()
        if self._dialling is not None:
            self._dialling.cancel()

    # --- answers ---------------------------------------------------------------------------------------------------

    def _pass_on(
        self, head: ResponseHead, placement: Placement, attempt: Attempt, now: float, verdict: Verdict | None = None
    ) -> None:
        """The response is final: send its head to the client and relay the body. `verdict`: why a retryable one is final."""
        self._recorder.answered(placement.backend.inference_server_id, head.status)
        try:
            headers = headers_to_client(
                head.headers, placement.backend, drop_listed=self._proxy.settings.drop_listed_headers
            )
        except ValueError:
            attempt.discard()
            self._recorder.request_failed(placement.backend, 500, verdict, None, self._retry_state, now)
            self._send(NOT_FORWARDABLE)
            self._finish("failed", NOT_FORWARDABLE.reason)
            return
        if verdict is not None or is_failure(head.status):
            self._recorder.request_failed(placement.backend, head.status, verdict, head, self._retry_state, now)
        self._state = _RELAYING
        self._first_byte_at = now
        self._replay.close()  # nothing is retried from here on
        self._recorder.first_byte(now)
        self._response.start(head.status, headers)
        attempt.relay(self._response)

    def _defect(self) -> None:
        """An exception or a state that this program rules out: log it, and answer the client all the same."""
        if self._state is _PENDING:
            _log.error("request in an impossible state", request_id=self._valid.request_id, state=self._state.name)
            self._answer(NO_ANSWER)

    def _fail(self, verdict: Verdict, head: ResponseHead | None, placement: Placement) -> None:
        """Answer after the last attempt, whose response (`head`, None if there was none) is not passed on."""
        ambiguous = verdict is Verdict.AMBIGUOUS or verdict is Verdict.ACCEPTED
        reply = NOT_REPEATABLE if verdict is Verdict.TOO_LARGE else AMBIGUOUS if ambiguous else NO_ANSWER
        now = self._proxy.clock()
        self._recorder.request_failed(placement.backend, reply.status, verdict, head, self._retry_state, now)
        self._answer(reply)

    def _answer(self, reply: LocalReply) -> None:
        """Send a local reply after an attempt."""
        backend = None if self._placement is None else self._placement.backend
        self._recorder.answered("" if backend is None else backend.inference_server_id, reply.status)
        self._send(reply)
        self._finish("failed", reply.reason)

    def _refuse(self, reply: LocalReply, server_id: str = "") -> None:
        """Send a local reply because no attempt is made, or instead of the refusal of the worker `server_id`."""
        self._recorder.answered(server_id, reply.status)
        self._send(reply)
        self._finish("refused", reply.reason)

    def _send(self, reply: LocalReply) -> None:
        reply.send(self._response, with_reason=self._proxy.settings.reasons_in_bodies)

    def _finish(self, end: str, reason: str) -> None:
        """The request has ended; the arguments are those of `RequestRecorder.finished`."""
        if self._state is _OVER:
            return
        self._state = _OVER
        self._replay.close()
        if self._routing_timer is not None:
            self._routing_timer.cancel()
            self._routing_timer = None
        self._dialling = None
        self._attempt = None
        proxy = self._proxy
        proxy.running.discard(self)
        self._recorder.finished(
            self._request,
            self._response,
            None if self._placement is None else self._placement.backend,
            self._retry_state.attempts,
            self._first_byte_at,
            self._first_token_at,
            end,
            proxy.clock(),
            reason,
        )
