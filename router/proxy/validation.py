"""Turns client headers into a routing request, or refuses them with a status. Uses no part of the body.

The order of the checks is part of the contract with the gateway (docs/proxy.md, "Validation"); refusals have no body but for those
of `x-routing-method`.
"""

import re
from typing import Final

import structlog

from router.balancing import Definition, MethodError, MethodErrorCode, RoutingRequest, Selector
from router.http1.request import ClientRequest
from router.proxy.local_replies import LocalReply, coded, plain
from router.proxy.method_header import MethodHeader
from router.proxy.settings import ProxySettings
from tunnel_protocol.unsigned import MAX_U32, MAX_U64

_log = structlog.get_logger()

_MAX_DIGITS: Final = 4096
_TEXTUAL: Final = bytes(range(0x20, 0x7F)) + b"\t"
_NUMBER: Final = re.compile(rb"\+?[0-9]+\Z").match
_REQUEST_ID: Final = b"x-request-id"
_METHOD_REASONS: Final = {
    MethodErrorCode.UNKNOWN_METHOD: "unknown x-routing-method",
    MethodErrorCode.UNAVAILABLE: "unavailable x-routing-method",
}


class InvalidRequestError(Exception):
    """The request is refused before routing with `reply`, whose reason goes into metrics and logs."""

    def __init__(self, status: int, reason: str, reply: LocalReply | None = None) -> None:
        super().__init__(f"{status}: {reason}")
        self.status = status
        self.reason = reason
        self.reply = reply or plain(status, reason)
        """One without a body, if none is given."""


class ValidRequest:
    """The parsed headers of a valid request."""

    __slots__ = ("effective", "request_id", "requested_method", "retry_deadline", "routing")

    def __init__(
        self,
        routing: RoutingRequest,
        effective: Definition,
        requested_method: str,
        request_id: str,
        retry_deadline: float | None,
    ) -> None:
        self.routing = routing
        self.effective = effective
        self.requested_method = requested_method
        self.request_id = request_id
        self.retry_deadline = retry_deadline
        """Monotonic seconds after which no retry is made; None = no limit."""


def text(value: bytes | None) -> str | None:
    """A header value as text without surrounding blanks; None if absent, blank or not printable ASCII."""
    if value is None:
        return None
    found = value.decode("latin-1")
    if found.isascii() and found.isprintable():  # nearly all, without a table of all characters
        return found.strip(" ") or None
    if value.translate(None, _TEXTUAL):
        return None
    return found.strip(" \t") or None


def number(value: bytes | None, limit: int, name: str) -> int | None:
    """An unsigned decimal of at most `limit`; None if absent. Raises `InvalidRequestError` for anything else."""
    if value is None:
        return None
    digits = value
    if not value.isdigit() or len(value) > _MAX_DIGITS:  # mostly it is nothing but digits
        digits = value.strip(b" \t")
        if not _NUMBER(digits) or len(digits) > _MAX_DIGITS:
            raise InvalidRequestError(400, f"invalid {name}")
    found = int(digits)
    if found > limit:
        raise InvalidRequestError(400, f"{name} out of range")
    return found


class Validator:
    """Checks the heads of proxied requests."""

    def __init__(self, selector: Selector, methods: MethodHeader, settings: ProxySettings) -> None:
        self._selector = selector
        self._methods = methods
        self._method_error_bodies = settings.method_error_bodies
        header = settings.retry_budget_header
        self._budget_header = None if header is None else header.lower().encode()
        self._trust_method = settings.trust_routing_method
        self._max_body = settings.max_replay_body_bytes

    def validate(self, request: ClientRequest) -> ValidRequest:
        """The routing request and its algorithm definition. Raises `InvalidRequestError`."""
        first = request.first
        request_id = text(first.get(_REQUEST_ID))
        if request_id is None:
            raise InvalidRequestError(400, "missing x-request-id")
        input_tokens = number(first.get(b"x-input-tokens"), MAX_U64, "x-input-tokens")
        if input_tokens is None:
            raise InvalidRequestError(400, "missing x-input-tokens")
        model = text(first.get(b"x-model"))
        if model is None:
            raise InvalidRequestError(400, "missing x-model")
        routing_key = text(first.get(b"x-routing-key"))
        asked = first.get(b"x-routing-method") if self._trust_method else None
        method = None if asked is None else text(asked)
        received_at = request.received_at
        effective = (
            self._selector.resolve(model, None)
            if asked is None
            else self._asked_for(asked, method, routing_key, model, received_at)
        )
        routing = RoutingRequest(
            routing_key=routing_key,
            model=model,
            affinity_key=text(first.get(b"x-cache-affinity-key")),
            input_tokens=input_tokens,
            priority=number(first.get(b"x-priority"), MAX_U32, "x-priority") or 0,
            max_wait_ms=number(first.get(b"x-max-wait-ms"), MAX_U64, "x-max-wait-ms"),
            request_slo_ms=number(first.get(b"x-request-slo-ms"), MAX_U64, "x-request-slo-ms"),
            received_at=received_at,
        )
        if effective.require_cache_affinity_key and routing.affinity_key is None:
            _log.warning(
                "missing cache affinity key for load-balanced proxy request", routing_key=routing_key, model_id=model
            )
            raise InvalidRequestError(400, "missing x-cache-affinity-key")
        deadline = self._retry_deadline(request)
        length = first.get(b"content-length")
        if length is not None and length.isdigit() and len(length) <= _MAX_DIGITS and int(length) > self._max_body:
            raise InvalidRequestError(413, "request body exceeds the replay limit")
        if asked is not None:
            self._methods.accepted(effective, routing_key, model, received_at)
        return ValidRequest(routing, effective, method or "", request_id, deadline)

    def _asked_for(
        self, value: bytes, method: str | None, routing_key: str | None, model: str, now: float
    ) -> Definition:
        """The definition that `x-routing-method` asks for. Raises `InvalidRequestError`."""
        try:
            return self._methods.resolve(value, method, routing_key, model, now)
        except MethodError as error:
            reason = _METHOD_REASONS.get(error.code, "invalid x-routing-method")
            reply = coded(400, error.code.value, str(error), reason) if self._method_error_bodies else None
            raise InvalidRequestError(400, reason, reply) from error

    def _retry_deadline(self, request: ClientRequest) -> float | None:
        if self._budget_header is None:
            return None
        budget_ms = number(request.first.get(self._budget_header), MAX_U64, "retry budget")
        return None if budget_ms is None else request.received_at + budget_ms / 1000
