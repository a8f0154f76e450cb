"""Errors of the mode `gateway`: `{"message":...}` with the gateway's texts. No I/O."""

from http import HTTPStatus
from typing import Any, Final

import msgspec

from router.openai.ports import Headers, Refusal

GATEWAY: Final = "gateway"
"""`Refusal.type` of errors whose message is the gateway's already."""

_CODES: Final = {400: "invalid_value", 401: "invalid_api_key", 404: "unknown_url", 405: "method_not_supported"}
_TEXTS: Final = {
    "invalid_api_key": "authentication failed",
    "permission_denied": "permission denied",
    "model_not_found": "not found",
    "authentication_unavailable": "authentication service unavailable",
    "rate_limit_exceeded": "rate limit exceeded",
    "rate_limit_request_too_large": "rate limit exceeded",
    "unknown_url": "Not Found",
    "no_capacity": "Service Unavailable",
    "request_too_large": "Request Entity Too Large",
}
NO_BEARER: Final = Refusal(401, GATEWAY, "invalid_api_key", "bearer authorization is required")
NOT_FOUND: Final = Refusal(404, GATEWAY, "unknown_url", "Not Found")
RESERVED: Final = Refusal(400, GATEWAY, "invalid_value", "x-priority is a reserved header")


def refused(status: int, message: str, headers: Headers = ()) -> Refusal:
    """An error with exactly this message."""
    return Refusal(status, GATEWAY, _CODES.get(status, "upstream_error"), message, headers=headers)


def message_body(refusal: Refusal) -> bytes:
    """The body of an error, with the newline that the gateway ends its documents with."""
    text = refusal.message if refusal.type == GATEWAY else _TEXTS.get(refusal.code, refusal.message)
    return msgspec.json.encode({"message": text.encode("utf-8", "replace").decode()}) + b"\n"


def of_engine(status: int, body: bytes) -> Refusal:
    """The error of a chat for an answer with `status`: the engine's message, or the whole body as text."""
    try:
        document: Any = msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        document = None
    error = document.get("error") if isinstance(document, dict) else None
    if (
        isinstance(error, dict)
        and isinstance(error.get("message"), str)
        and not isinstance(error.get("code"), (int, float))
    ):
        return refused(status, error["message"])
    text = body[: 32 * 1024].decode("utf-8", "replace").strip()
    return refused(status, text or phrase(status))


def phrase(status: int) -> str:
    """The reason phrase of a status."""
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return f"status {status}"
