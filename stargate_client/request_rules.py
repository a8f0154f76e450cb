"""The checks of a tunnelled request before it is sent to the engine, in their order. No I/O."""

import math
from typing import NamedTuple

import msgspec

from stargate_client.answers import Problem
from stargate_client.settings import QueueAdmission, WorkerSettings
from stargate_client.stats import ModelLoad
from tunnel_protocol.head import EXPECTED_QUEUE_MS, HeaderList, RequestHead, request_headers_to_engine
from tunnel_protocol.unsigned import MAX_U32, MAX_U64

CHAT, RESPONSES, EMBEDDINGS = b"/v1/chat/completions", b"/v1/responses", b"/v1/embeddings"
OBSERVED = frozenset((CHAT, RESPONSES, EMBEDDINGS))
_STREAMED = frozenset((CHAT, RESPONSES))
_TEXTUAL = bytes(range(0x20, 0x7F)) + b"\t"


class RequestFacts(NamedTuple):
    """The values in the headers of a valid request."""

    request_id: str
    model: str
    input_tokens: int
    priority: int | None


def facts(head: RequestHead) -> RequestFacts:
    """Check and parse the required headers. Raises `Problem` (400)."""
    first: dict[bytes, bytes] = {}
    for name, value in head.headers:
        first.setdefault(name, value)
    request_id = _text(first.get(b"x-request-id"))
    if not request_id:
        raise Problem(400, "missing required x-request-id header")
    model = _text(first.get(b"x-model"))
    if not model:
        raise Problem(400, "missing required x-model header")
    if b"x-input-tokens" not in first:
        raise Problem(400, "missing required x-input-tokens header")
    tokens = _number(first[b"x-input-tokens"], MAX_U64)
    if tokens is None:
        raise Problem(400, "invalid x-input-tokens header")
    priority = None
    if b"x-priority" in first:
        priority = _number(first[b"x-priority"], MAX_U32)
        if priority is None:
            raise Problem(400, "invalid x-priority header")
    return RequestFacts(request_id, model, tokens, priority)


def check_body(method: bytes, path: bytes, body: bytes) -> None:
    """Check that the body is JSON, and that chat and responses requests are streaming. Raises `Problem` (400)."""
    try:
        if method == b"POST" and path in _STREAMED:
            document = msgspec.json.decode(body)
            if not isinstance(document, dict) or document.get("stream") is not True:
                raise Problem(400, f"{path.decode()} requests must set stream=true")
        else:
            msgspec.json.decode(body, type=msgspec.Raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise Problem(400, "request body must be valid JSON") from None


def check_queue(head: RequestHead, known: RequestFacts, load: ModelLoad, admission: QueueAdmission) -> None:
    """Compare the worker's queue time estimate with the router's. Raises `Problem` (429) if it is too high (`admission`)."""
    if not admission.enabled:
        return
    expected = None
    for name, value in head.headers:
        if name == EXPECTED_QUEUE_MS:
            expected = _number(value, MAX_U64)
            break
    if expected is None:
        return
    actual = load.queue_ahead_ms(known.request_id, known.priority or 0)
    if actual is None:
        return
    threshold = min(MAX_U64, max(expected + admission.min_delta_ms, math.ceil(expected * admission.tolerance)))
    if actual > threshold:
        raise Problem(
            429,
            "local queue estimate exceeded Stargate routing estimate",
            retryable=True,
            reason="queue_estimate_mismatch",
            retry_after_ms=admission.retry_after_ms,
            members={
                "reason": "queue_estimate_mismatch",
                "expected_queue_ms": expected,
                "actual_queue_ms": actual,
                "threshold_ms": threshold,
            },
        )


def engine_headers(head: RequestHead, known: RequestFacts | None, settings: WorkerSettings) -> HeaderList:
    """The headers for the engine; `known` is None for a health request, which has no priority."""
    # `Expect` is removed: the body is complete, and the client would wait for an engine that sends no 100 (Continue).
    headers = [
        entry for entry in request_headers_to_engine(head.headers, settings.retry.header) if entry[0] != b"expect"
    ]
    if known is not None and settings.dynamo_priorities:
        ceiling = settings.priority_ceiling
        rank = ceiling if known.priority is None else min(known.priority, ceiling)
        headers.append((b"x-dynamo-request-priority", b"%d" % (ceiling - rank)))
        headers.append((b"x-dynamo-request-strict-priority", b"0"))
    return headers


def _text(value: bytes | None) -> str | None:
    if value is None or value.translate(None, _TEXTUAL):
        return None
    return value.strip(b" \t").decode("ascii")


def _number(value: bytes, limit: int) -> int | None:
    digits = value.strip(b" \t").removeprefix(b"+")
    if not digits.isdigit() or len(digits) > 30:
        return None
    found = int(digits)
    return found if found <= limit else None
