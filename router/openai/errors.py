"""The errors of the front: one table of codes, and the envelope every one is sent in.

`docs/openai.md` has a section for each code; a test compares both lists.
"""

from typing import Final

import msgspec

from router.openai.ports import Headers, Refusal, unknown_model

CODES: Final[dict[str, str]] = {
    "invalid_json": "the body is not one JSON object",
    "missing_required_parameter": "a member that the request needs is not there",
    "invalid_type": "a member has a type that cannot be used",
    "invalid_value": "a member or header has a value that cannot be used",
    "malformed_request": "the request is not valid HTTP",
    "invalid_api_key": "no API key, or one that is not valid",
    "permission_denied": "the key has no right to the model",
    "authentication_unavailable": "keys cannot be checked now",
    "unknown_url": "the path is not served here or by the engine",
    "model_not_found": "no worker has registered the model, or the key has no right to it",
    "method_not_supported": "the path has another method",
    "request_timeout": "the request did not arrive in time",
    "request_too_large": "the body is larger than the limit",
    "request_target_too_long": "the URL is too long",
    "request_headers_too_large": "the header lines are too large",
    "unsupported_content_type": "the body is not JSON, or is compressed",
    "rate_limit_exceeded": "a limit of the key is reached",
    "rate_limit_request_too_large": "the request can never pass a limit of the key",
    "rate_limit_unavailable": "limits cannot be checked now",
    "internal_error": "a defect of the router",
    "upstream_error": "the worker or its engine failed, or its answer cannot be used",
    "no_capacity": "no worker can take the request now",
    "timeout": "a time limit ended the request",
}
"""All codes that the front can send. Engines send further ones of their own."""

INVALID_REQUEST: Final = "invalid_request_error"
SERVER_ERROR: Final = "server_error"

_RETRY_SOON: Final[Headers] = ((b"retry-after", b"1"), (b"retry-after-ms", b"1000"))
_NO_RETRY: Final[Headers] = ((b"x-should-retry", b"false"),)

_SERVER_STATUS: Final = 500


class RequestError(Exception):
    """A request cannot be used; `refusal` is the answer."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


def envelope(refusal: Refusal) -> bytes:
    """The body of an error answer, or the data of an error event."""
    return error_object(refusal.message, refusal.type, refusal.param, refusal.code)


def error_object(message: str, kind: str, param: str | None, code: str | None) -> bytes:
    """`{"error":{message,type,param,code}}`; lone surrogates in texts are replaced."""
    texts = [
        None if text is None else text.encode("utf-8", "replace").decode() for text in (message, kind, param, code)
    ]
    return msgspec.json.encode({"error": dict(zip(("message", "type", "param", "code"), texts, strict=True))})


def bad_request(code: str, message: str, param: str | None = None) -> Refusal:
    """400."""
    return Refusal(400, INVALID_REQUEST, code, message, param)


def unknown_url(method: str, path: str) -> Refusal:
    """404 for a path that is not served."""
    return Refusal(
        404,
        INVALID_REQUEST,
        "unknown_url",
        f"Unknown request URL: {method} {path}. See docs/openai.md for the URLs that are served.",
    )


def model_not_found(name: str) -> Refusal:
    """404 for a model that does not exist, or that the caller has no right to."""
    return Refusal(404, INVALID_REQUEST, "model_not_found", unknown_model(name), "model")


def engine_lacks(method: str, path: str) -> Refusal:
    """404 for an endpoint that the engine of the model does not have."""
    return Refusal(
        404, INVALID_REQUEST, "unknown_url", f"The engine that serves this model does not have {method} {path}."
    )


def method_not_supported(method: str, path: str, allow: bytes) -> Refusal:
    """405."""
    return Refusal(
        405,
        INVALID_REQUEST,
        "method_not_supported",
        f"{method} is not supported for {path}. Use {allow.decode()}.",
        headers=((b"allow", allow),),
    )


def too_large(limit_bytes: int) -> Refusal:
    """413."""
    return Refusal(
        413,
        INVALID_REQUEST,
        "request_too_large",
        f"The request body is larger than the limit of {limit_bytes} bytes. Send a smaller one.",
    )


def unsupported_content_type(message: str) -> Refusal:
    """415."""
    return Refusal(415, INVALID_REQUEST, "unsupported_content_type", message)


def no_capacity(message: str = "No worker can take the request at the moment. Try again.") -> Refusal:
    """503 that a client may try again soon."""
    return Refusal(503, SERVER_ERROR, "no_capacity", message, headers=_RETRY_SOON)


def upstream_error(message: str, *, retry: bool = False) -> Refusal:
    """502. Without `retry` a client is told not to send the request again: it may have been processed."""
    return Refusal(502, SERVER_ERROR, "upstream_error", message, headers=() if retry else _NO_RETRY)


def timed_out(message: str) -> Refusal:
    """504; the client is told not to send the request again."""
    return Refusal(504, SERVER_ERROR, "timeout", message, headers=_NO_RETRY)


INTERNAL_ERROR: Final = Refusal(
    500, SERVER_ERROR, "internal_error", "The router failed to handle the request. Tell the operator the request id."
)

_OF_HTTP: Final = {
    400: ("malformed_request", "The request is not valid HTTP."),
    408: ("request_timeout", "The request did not arrive in time. Send it again."),
    413: ("request_too_large", "The request body is too large. Send a smaller one."),
    414: ("request_target_too_long", "The URL is too long."),
    431: ("request_headers_too_large", "The header lines are too large. Send fewer or smaller ones."),
}


def of_http(status: int) -> Refusal:
    """The error for a request that the HTTP server refuses with `status`."""
    if status >= _SERVER_STATUS:
        return no_capacity("This router is shutting down. Try again.")
    code, message = _OF_HTTP.get(status, _OF_HTTP[400])
    return Refusal(status, INVALID_REQUEST, code, message)
