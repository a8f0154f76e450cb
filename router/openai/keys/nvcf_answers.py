"""What an answer of the NVCF API, or its failure, means for a caller.

Source of statuses and fields: `AuthLlmInvocation` in tunnel_protocol/control/llm_gateway.proto, docs/openai-keys.md, "NVCF".
"""

import hashlib
from dataclasses import dataclass

import grpc

from router.openai.keys.caller import GrantedCaller, Names
from router.openai.keys.refusals import CANNOT_CHECK, CHECK_FAILED, CHECK_TOOK_TOO_LONG, WRONG_KEY
from router.openai.limits.limit_set import LimitSet
from router.openai.limits.rule import RuleError, parse_rules
from router.openai.ports import KeyRefused
from tunnel_protocol.control import llm_gateway_pb2

_ACCOUNT = "ncaId"
_KEY_ID_PREFIX = "nvcf:"
_KEY_ID_CHARACTERS = 64


@dataclass(frozen=True, slots=True)
class NoRight:
    """The key is not for this function, or there is no such function: the API does not say which to callers it refuses."""


class UnusableAnswerError(Exception):
    """The API accepted the key, and its answer cannot be used; the text is for the log."""


def caller_of(reply: llm_gateway_pb2.AuthLlmInvocationResponse, routing_key: str) -> GrantedCaller:
    """The caller that the API describes. Raises `UnusableAnswerError`."""
    if reply.routingKey not in ("", routing_key):
        raise UnusableAnswerError("the answer is about another routing key")
    account = reply.authContext.get(_ACCOUNT, "")
    if not account:
        raise UnusableAnswerError(f"the answer has no {_ACCOUNT}")
    limits: dict[str, LimitSet] = {}
    methods: dict[str, str] = {}
    for model, spec in reply.modelSpecs.items():
        try:
            rules = parse_rules(spec.tokenRateLimit)
        except RuleError as error:
            raise UnusableAnswerError(f"tokenRateLimit of a model: {error}") from None
        if rules:
            limits[model] = LimitSet(tokens=rules)
        if spec.routingMethod.strip():
            methods[model] = spec.routingMethod.strip()
    return GrantedCaller(
        key_id=_key_id(account),
        priority=reply.priority if reply.HasField("priority") else None,
        # Exact, whatever the last character is: the API answers for one function.
        routing_keys=Names((), exact=(routing_key,)),
        model_limits=limits,
        routing_methods=methods,
        scope=f"{_KEY_ID_PREFIX}{account}",
    )


def _key_id(account: str) -> str:
    found = f"{_KEY_ID_PREFIX}{account}"
    if len(found) <= _KEY_ID_CHARACTERS:
        return found
    return _KEY_ID_PREFIX + hashlib.sha256(account.encode()).hexdigest()[:32]


def refusal_of(status: grpc.StatusCode) -> KeyRefused | NoRight:
    """What a caller is told if the API answers with `status`. Its own text is never passed on."""
    if status is grpc.StatusCode.UNAUTHENTICATED:
        return WRONG_KEY
    if status in (
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.INVALID_ARGUMENT,  # the routing key is no function id
    ):
        return NoRight()
    if status is grpc.StatusCode.DEADLINE_EXCEEDED:
        return CHECK_TOOK_TOO_LONG
    return CANNOT_CHECK if status is grpc.StatusCode.UNAVAILABLE else CHECK_FAILED
