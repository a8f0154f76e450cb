"""One request in the mode `gateway`: the order of its checks, its estimate, affinity and texts.

docs/openai.md, "Replacing the gateway".
"""

from dataclasses import replace
from typing import Any, Final

import msgspec

from router.http1.request import ClientRequest
from router.http1.response import Response
from router.openai import body_facts, gateway_checks, gateway_estimate, json_body
from router.openai.client_body import ClientBody
from router.openai.endpoints import Endpoint, Kind
from router.openai.errors import RequestError
from router.openai.front_context import FrontContext
from router.openai.front_request import FrontRequest, FrontState
from router.openai.gateway_answer import GatewayAnswer
from router.openai.gateway_texts import NO_BEARER, RESERVED, refused
from router.openai.json_body import JsonObject
from router.openai.ports import Admission, BodyFacts, Caller, KeyRefused, LimitRefusal, Refusal
from router.openai.worker_answer import Asked, WorkerAnswer
from router.registry import TargetKey
from tunnel_protocol.head import HeaderList

_SESSION: Final = b"x-multi-turn-session-id"
_BEARER: Final = b"Bearer "
_OF_KEYS: Final = {502: "authentication failed", 504: "authentication timed out"}


class GatewayRequest(FrontRequest):
    """One request."""

    def __init__(self, front: FrontContext, request: ClientRequest, response: Response, endpoint: Endpoint) -> None:
        super().__init__(front, request, response, endpoint)
        self._raw = b""
        self._wanted_key: str | None = None
        self._document: dict[str, Any] = {}
        self._session: str | None = None
        self._session_of_header = False

    def begin(self) -> None:
        """See `CallerRequest.begin`: the body comes first, for who the caller is depends on it."""
        self._front.running.add(self)
        self._read_body()

    def _use_body(self) -> None:
        """Ask who the caller is, if the body names a routing key."""
        self._state = FrontState.CHECKS
        self._times.read_at = self._times.worker_sent_at = self._front.clock()
        self._raw = b"".join(self._pieces)
        self._pieces = []
        first = self._request.first
        self._wanted_key = gateway_checks.routing_key_of(self._raw, first.get(b"content-type"))
        if self._wanted_key is None:
            self._check()
        elif len(first.get(b"authorization", b"")) > len(_BEARER) and first[b"authorization"].startswith(_BEARER):
            super().begin()
        else:
            self.refuse(NO_BEARER)

    def refuse(self, refusal: Refusal, headers: HeaderList | None = None) -> None:
        """See `CallerRequest.refuse`: failures of the check of keys have texts of their own."""
        if isinstance(refusal, KeyRefused) and refusal.status in _OF_KEYS:
            refusal = refused(refusal.status, _OF_KEYS[refusal.status], refusal.headers)
        super().refuse(refusal, headers)

    def identified(self, caller: Caller) -> None:  # noqa: ARG002 - it is kept already
        """See `CallerRequest.identified`."""
        self._check()

    def _check(self) -> None:
        """Check the body in the order of the gateway, then go on as every request does."""
        request, endpoint = self._request, self._endpoint
        if b"x-priority" in request.first:
            self.refuse(RESERVED)
            return
        try:
            document = gateway_checks.decode(endpoint, self._raw, request.first.get(b"content-type"))
            gateway_checks.check_types(endpoint, document)
            if endpoint.kind is not Kind.EMBEDDING:
                self._find_session(document)
            model = gateway_checks.model_of(document, self._wanted_key)
            gateway_checks.check_contents(endpoint, document)
            body = json_body.parse(self._raw)
            stream = endpoint.streams and document.get("stream") is True
            self._body = ClientBody(endpoint, body, document["model"], stream=stream)
        except RequestError as error:
            self.refuse(error.refusal)
            return
        self._document = document
        self._name, self._stream = document["model"], stream
        caller = self._caller
        if caller is None:  # pragma: no cover - without a routing key there is no model
            self.refuse(NO_BEARER)
            return
        self._ask_for_rights(caller, TargetKey(self._wanted_key, model))

    def _find_session(self, document: dict[str, Any]) -> None:
        """The session that the body names, else the header. Raises `RequestError` for one that cannot be, used or not."""
        given = self._request.first.get(_SESSION, b"").decode("latin-1").strip(" \t")
        fault = self._front.services.affinity.session_fault(given)
        if fault is not None:
            raise RequestError(refused(400, f"x-multi-turn-session-id is invalid: {fault}"))
        conversation = document.get("conversation")
        named = {"prompt_cache_key": document.get("prompt_cache_key")}
        if self._endpoint.kind is Kind.RESPONSE and isinstance(conversation, dict):
            named["conversation.id"] = conversation.get("id")
        for source, value in named.items():
            if isinstance(value, str) and value:
                fault = self._front.services.affinity.session_fault(value)
                if fault is not None:
                    raise RequestError(refused(400, f"session id from {source} is invalid: {fault}"))
                self._session = value
                return
        self._session, self._session_of_header = given or None, True

    def _facts(self, body: ClientBody) -> BodyFacts:  # noqa: ARG002 - the document is decoded already
        document, key = self._document, self._key
        if self._endpoint.kind is Kind.EMBEDDING:
            return BodyFacts(quarters=gateway_estimate.embeddings_tokens(document.get("input")))
        model = "" if key is None else key.model
        if self._endpoint.kind is Kind.RESPONSE:
            return BodyFacts(quarters=gateway_estimate.responses_tokens(document, model))
        return BodyFacts(quarters=gateway_estimate.chat_tokens(document, model))

    def _affinity(self, caller: Caller, body: JsonObject, key: TargetKey) -> str | None:  # noqa: ARG002 - as above
        if self._endpoint.kind is Kind.EMBEDDING:
            given = self._request.first.get(b"x-cache-affinity-key")
            return None if given is None or not given.isascii() else given.decode()
        affinity = self._front.services.affinity
        session = self._session
        if session is not None:
            shown = session
            found: str | None = affinity.of_session(
                caller, key.routing_key, key.model, session, from_header=self._session_of_header
            )
        else:
            name = "messages" if self._endpoint.kind is Kind.CHAT else "input"
            found = affinity.of_prefix(caller, key.routing_key, key.model, (_payload(self._document.get(name)),))
            shown = found or ""
        if shown.isascii():
            self._headers.append((_SESSION, shown.encode()))
        return found

    def _told_output(self) -> int | None:
        return (self._output_hint or 1) if self._endpoint.kind is Kind.RESPONSE else None

    def _on_admitted(self, found: Admission | LimitRefusal) -> None:
        if isinstance(found, LimitRefusal) and found.code == "rate_limit_request_too_large":
            found = replace(found, status=429)  # the gateway does not tell what can never pass
        super()._on_admitted(found)

    def _new_answer(self, asked: Asked) -> WorkerAnswer:
        self._raw, self._document = b"", {}
        if self._endpoint.kind is not Kind.CHAT and self._key is not None:
            # The gateway passes these answers on as they are, with the routed name.
            asked.model = body_facts.encoded(self._key.model)
        return GatewayAnswer(self, self._response, asked)


def _payload(found: Any) -> bytes:
    """The compact JSON of messages or input as the gateway writes it: of each message first the role, then the content."""
    if isinstance(found, list):
        found = [
            {**{name: one[name] for name in ("role", "content") if name in one}, **one}
            if isinstance(one, dict)
            else one
            for one in found
        ]
    return msgspec.json.encode(found)
