"""One request of an OpenAI client for a worker, from its head to the end of its answer.

An object driven by callbacks, as a proxied request is: it learns who asks, reads the body, finds the target, has the request
counted, and hands it to routing and relay with the headers that a gateway would send. docs/openai.md, "The way of a request".
"""

import asyncio
from enum import IntEnum
from typing import Final

from router.balancing import RoutingRequest
from router.http1.request import ClientRequest
from router.http1.response import Response
from router.openai import body_facts, client_body, errors
from router.openai.caller_request import WorkerRequest
from router.openai.client_body import ClientBody
from router.openai.endpoints import Endpoint, Kind
from router.openai.errors import RequestError, bad_request
from router.openai.front_context import FrontContext, Relayed
from router.openai.json_body import JsonObject
from router.openai.ports import (
    Admission,
    BodyFacts,
    Caller,
    End,
    Estimate,
    KeyRefused,
    LimitRefusal,
    UsageRecord,
)
from router.openai.time_limits import TimeLimits
from router.openai.worker_answer import Asked, WorkerAnswer
from router.openai.worker_head import request_for_worker
from router.registry import TargetKey

_SESSION: Final = b"x-multi-turn-session-id"
_MAX_U32: Final = (1 << 32) - 1
_EMBEDDING: Final = Kind.EMBEDDING


def _exceeds(length: bytes, limit: int) -> bool:
    """Whether a `content-length` is above `limit`."""
    return length.isdigit() and (len(length) > 18 or int(length) > limit)


class FrontState(IntEnum):
    """How far a request is; it only increases."""

    CALLER = 0
    """It is not known yet who asks."""
    BODY = 1
    """The body is being read."""
    CHECKS = 2
    """The rights and limits of the caller are being asked for."""
    WORKER = 3
    """Routing and relay have the request; there is no head of an answer."""
    ANSWER = 4
    """The head of a worker's answer is here."""


# Bound once: looking a member up in its enum takes long (Python 3.11).
_CALLER: Final = FrontState.CALLER
_BODY: Final = FrontState.BODY
_CHECKS: Final = FrontState.CHECKS
_WORKER: Final = FrontState.WORKER
_ANSWER: Final = FrontState.ANSWER


class FrontRequest(WorkerRequest):
    """One request; implements `ResponseFlow` and `BodyConsumer`."""

    def __init__(self, front: FrontContext, request: ClientRequest, response: Response, endpoint: Endpoint) -> None:
        super().__init__(front, request, response)
        self._endpoint = endpoint
        self._state = _CALLER
        self._pieces: list[bytes] = []
        self._held = 0
        self._body: ClientBody | None = None
        self._key: TargetKey | None = None
        self._name = ""
        self._stream = False
        self._estimate: Estimate | None = None
        self._output_hint: int | None = None
        self._admission: Admission | None = None
        self._answer: WorkerAnswer | None = None
        self._relayed: Relayed | None = None
        self._paused = False
        self._served = False
        self._times = TimeLimits(front.settings)

    # --- the body ----------------------------------------------------------------------------------------------------

    def identified(self, caller: Caller) -> None:  # noqa: ARG002 - it is kept already
        """See `CallerRequest.identified`: read the body."""
        self._read_body()

    def _read_body(self) -> None:
        self._state = _BODY
        request, limit = self._request, self._front.settings.max_body_bytes
        length = request.first.get(b"content-length")
        if length is not None and len(length) >= self._front.body_limit_digits and _exceeds(length, limit):
            self.refuse(errors.too_large(limit))
        elif request.first.get(b"content-encoding", b"identity") != b"identity":
            self.refuse(
                errors.unsupported_content_type("Compressed request bodies are not supported. Send plain JSON.")
            )
        elif request.body.complete:  # it came with its head
            for data in request.body.take():
                self.on_body(data)
            self.on_body_end()
        else:
            request.body.attach(self)

    def on_body(self, data: bytes) -> None:
        """See `BodyConsumer`."""
        if self._over:
            return
        size = len(data)
        if self._held + size > self._front.settings.max_body_bytes:
            self.refuse(errors.too_large(self._front.settings.max_body_bytes))
        elif not self._front.bodies.take(size):
            self.refuse(errors.no_capacity("Too many large requests are running. Try again."))
        else:
            self._held += size
            self._pieces.append(data)

    def on_body_end(self) -> None:
        """See `BodyConsumer`: the body is complete."""
        if not self._over:
            try:
                self._use_body()
            except Exception:  # noqa: BLE001 - the connection would break, and its client not know why
                self.defect()

    def _use_body(self) -> None:
        self._state = _CHECKS
        self._times.read_at = self._times.worker_sent_at = self._front.clock()
        pieces, self._pieces = self._pieces, []
        try:
            raw = pieces[0] if len(pieces) == 1 else b"".join(pieces)
            body = client_body.read(self._endpoint, raw, self._request.first.get(b"content-type"))
        except RequestError as error:
            self.refuse(error.refusal)
            return
        self._body = body
        self._name, self._stream = body.name, body.stream
        self._authorize()

    def on_body_broken(self, reason: str) -> None:  # noqa: ARG002 - the refusal has a text of its own
        """See `BodyConsumer`."""
        self.refuse(errors.of_http(400))

    # --- rights and limits -------------------------------------------------------------------------------------------

    def _authorize(self) -> None:
        key = self._front.names.find(self._name)
        caller = self._caller
        if key is None or caller is None:
            self.refuse(errors.model_not_found(self._name))
            return
        self._ask_for_rights(caller, key)

    def _ask_for_rights(self, caller: Caller, key: TargetKey) -> None:
        self._key = key
        found: Caller | KeyRefused | asyncio.Future[Caller | KeyRefused]
        found = self._front.services.authenticator.authorize(caller, key.routing_key, key.model, self._name)
        if isinstance(found, asyncio.Future):
            self._keep_text_only()
            self.wait_for(found, self._on_authorized)
        else:
            self._on_authorized(found)

    def _on_authorized(self, found: Caller | KeyRefused) -> None:
        body, key = self._body, self._key
        if isinstance(found, KeyRefused):
            self.refuse(found)
            return
        if body is None or key is None:  # pragma: no cover - both are there before the rights are asked for
            self.refuse(errors.INTERNAL_ERROR)
            return
        self._caller = found
        services = self._front.services
        estimate = self._estimate = services.estimator.estimate(key.model, self._facts(body))
        hint: int | None = None
        if self._endpoint.kind is not _EMBEDDING:
            hint = services.estimator.output_hint(key.model, body_facts.output_limit(self._endpoint, body.json))
        self._output_hint = hint
        reserved = 0 if self._endpoint.kind is _EMBEDDING else hint
        admitted: Admission | LimitRefusal | asyncio.Future[Admission | LimitRefusal]
        admitted = services.limiter.admit(found, key.routing_key, key.model, estimate.tokens, reserved)
        if isinstance(admitted, asyncio.Future):
            self._keep_text_only()
            self.wait_for(admitted, self._on_admitted)
        else:
            self._on_admitted(admitted)

    def _keep_text_only(self) -> None:
        """Forget what was decoded of the body: it is not among the bytes that are counted."""
        if self._body is not None:
            self._body.json.forget()

    def _facts(self, body: ClientBody) -> BodyFacts:
        return body_facts.facts_of(self._endpoint, body.json)

    def _on_admitted(self, found: Admission | LimitRefusal) -> None:
        if isinstance(found, LimitRefusal):
            self.refuse(found)
            return
        self._admission = found
        self._headers += found.headers
        self._relay()

    # --- the worker --------------------------------------------------------------------------------------------------

    def _relay(self) -> None:
        """Hand the request to routing and relay."""
        body, key, estimate, caller, front = self._body, self._key, self._estimate, self._caller, self._front
        if body is None or key is None or estimate is None or caller is None:  # pragma: no cover - all are there
            self.refuse(errors.INTERNAL_ERROR)
            return
        try:
            affinity = self._affinity(caller, body.json, key)
            raw = body.for_worker(key.model)
        except RequestError as error:
            self.refuse(error.refusal)
            return
        priority = caller.priority
        if priority is not None and priority > _MAX_U32:
            priority = _MAX_U32
        model = key.model
        routing = RoutingRequest(
            routing_key=key.routing_key,
            model=model,
            affinity_key=affinity,
            input_tokens=estimate.tokens,
            priority=priority or 0,
            received_at=self._request.received_at,
        )
        to_worker = request_for_worker(
            self._request, self._endpoint, routing, self._headers[0][1], self._told_output(), priority, raw
        )
        asked = Asked(
            endpoint=self._endpoint,
            name=body.name,
            model=body.model,
            routed=model,
            stream=body.stream,
            keep_usage=body.keep_usage,
            headers=self._headers,
            render=front.render,
            now=front.clock,
        )
        self._body = None  # the worker gets another text
        answer = self._answer = self._new_answer(asked)
        self._state = _WORKER
        relayed = front.relay.relay(to_worker, answer, routing, self.request_id, caller.routing_method(model))
        if self._over:
            return  # it was refused at once
        self._relayed = relayed
        if self._paused:
            relayed.pause_response()
        front.watch()

    def _told_output(self) -> int | None:
        """Output tokens that the worker is told as part of the estimate."""
        return self._output_hint

    def _new_answer(self, asked: Asked) -> WorkerAnswer:
        return WorkerAnswer(self, self._response, asked)

    def _affinity(self, caller: Caller, body: JsonObject, key: TargetKey) -> str | None:
        """The affinity key; a session that the client names is told in the answer. Embeddings have none.

        Raises `RequestError` if the header that names the session cannot be used, unless the body names one.
        """
        if self._endpoint.kind is _EMBEDDING:
            return None
        affinity = self._front.services.affinity
        session, from_header = body_facts.session_of(self._endpoint, body), False
        if session is None or affinity.session_fault(session) is not None:
            given = self._request.first.get(_SESSION)
            session, from_header = None if given is None else given.decode("latin-1").strip(" \t"), True
        if session:
            fault = affinity.session_fault(session)
            if fault is not None:
                name = _SESSION.decode()
                raise RequestError(bad_request("invalid_value", f"The header `{name}` {fault}.", name))
            if session.isascii():
                self._headers.append((_SESSION, session.encode()))
            return affinity.of_session(caller, key.routing_key, key.model, session, from_header=from_header)
        return affinity.of_prefix(caller, key.routing_key, key.model, body_facts.prefix_of(self._endpoint, body))

    # --- WorkerRequest -----------------------------------------------------------------------------------------------

    def was_served(self) -> bool:
        """See `WorkerRequest`."""
        return self._key is not None and self._front.known.was_served(self._key)

    def worker_answered(self, status: int) -> None:
        """See `WorkerRequest`."""
        self._state = _ANSWER
        self._served = 200 <= status < 300
        self._times.worker_sent_at = self._front.clock()
        self._release_body()

    def failed(self, reason: str) -> None:
        """See `WorkerRequest`: in a later turn of the event loop, for the call comes from within the exchange."""
        if self._relayed is not None:
            self._front.loop.call_soon(self._relayed.abandon, reason)

    def answered(self, end: End, status: int, code: str | None) -> None:
        """See `WorkerRequest`."""
        self._end(end, status, code)

    def tick(self, now: float) -> None:
        """See `CallerRequest.tick`: end the request at a limit, or send a comment in a silent stream."""
        answer, times = self._answer, self._times
        if self._over or answer is None:
            return
        if self._paused:
            times.worker_sent_at = now  # the client does not read: the worker is not idle
        elif answer.sent_at > times.worker_sent_at:
            times.worker_sent_at = answer.sent_at
        message = times.reached(now, answered=self._state is _ANSWER)
        if message is not None:
            self.failed(message)
            answer.fail(errors.timed_out(message), End.CUT)
        elif answer.streaming and times.comment_is_due(now):
            times.commented_at = now
            answer.keep_alive()

    # --- ResponseFlow ------------------------------------------------------------------------------------------------

    def pause_response(self) -> None:
        """See `ResponseFlow`."""
        self._paused = True
        if self._relayed is not None:
            self._relayed.pause_response()

    def resume_response(self) -> None:
        """See `ResponseFlow`."""
        self._paused = False
        if self._relayed is not None:
            self._relayed.resume_response()

    def client_gone(self) -> None:
        """See `ResponseFlow`: cancel what runs for the client, also if it still waits for a worker."""
        relayed = self._relayed
        if self._answer is not None:
            self._answer.over = True
        self._end(End.CLIENT_GONE, self._response.status, None)
        if relayed is not None:
            relayed.client_gone()

    # --- the end -----------------------------------------------------------------------------------------------------

    def finish(self, status: int, code: str | None) -> None:
        """See `CallerRequest.finish`: for ends before a worker had the request."""
        self._end(End.REFUSED, status, code)

    def _end(self, end: End, status: int, code: str | None) -> None:
        if self._over:
            return
        super().finish(status, code)
        self._release_body()
        self._pieces = []
        self._body = None
        self._relayed = None
        answer, key, estimate = self._answer, self._key, self._estimate
        self._answer = None  # cuts the reference cycle between the two
        usage = None if answer is None else answer.usage
        seen = 0 if answer is None else answer.content_events
        services = self._front.services
        if self._admission is not None:
            self._admission.finish(usage, seen, served=self._served)
        if usage is not None and key is not None and estimate is not None:
            services.estimator.learn(key.model, estimate, usage)
        if self._caller is None:
            return
        first = None if answer is None or not answer.first_at else (answer.first_at - self._times.read_at) * 1000
        services.usage.record(
            UsageRecord(
                request_id=self.request_id,
                key_id=self._caller.key_id,
                path=self._endpoint.path,
                routing_key=None if key is None else key.routing_key,
                model="" if key is None else key.model,
                registered=key is not None and self._front.registry.is_advertised(key),
                stream=self._stream,
                status=status,
                code=code,
                end=end,
                estimated_input_tokens=0 if estimate is None else estimate.tokens,
                usage=usage,
                output_seen=seen,
                first_token_ms=first,
                duration_ms=(self._front.clock() - self._request.received_at) * 1000,
            )
        )

    def _release_body(self) -> None:
        self._front.bodies.give_back(self._held)
        self._held = 0
