"""Errors of engines: those with OpenAI's envelope pass as they are, all others are wrapped. No I/O."""

from typing import Any, Final

import msgspec

from router.openai import errors
from router.openai.ports import Refusal
from tunnel_protocol.limit import Limit

BODY: Final = Limit("openai.engine_error_body", bytes=1024 * 1024)
"""Bytes of the error answer of an engine that are looked at; a longer one is replaced."""

BODY_BYTES: Final = BODY.bytes or 0
_MAX_MESSAGE: Final = 2_000
_OF_CALLER: Final = (401, 403, 407)
_LACKING: Final = (404, 405)
_SERVER_ERROR: Final = 500


def is_envelope(body: bytes) -> bool:
    """Whether a body is `{"error":{"message":...}}`."""
    error = _object(body).get("error")
    return isinstance(error, dict) and isinstance(error.get("message"), str)


def wrapped(status: int, body: bytes, path: str) -> Refusal:
    """The error for an engine's answer with `status` and a body that is no envelope."""
    if status in _LACKING:
        return errors.engine_lacks("POST", path)
    message = _message(body) or f"The engine answered with status {status}."
    if status in _OF_CALLER or not 400 <= status < 600:
        # The engine refuses the worker, or redirects it: the client can do nothing about that.
        return errors.upstream_error(f"The engine refused the request of its worker with status {status}.")
    if status == 429:
        return Refusal(429, "requests", "rate_limit_exceeded", message)
    if status < _SERVER_ERROR:
        return Refusal(status, errors.INVALID_REQUEST, "upstream_error", message)
    return Refusal(status, errors.SERVER_ERROR, "upstream_error", message)


def of_event(data: bytes) -> Refusal:
    """The error for an error event in a stream."""
    found = _object(data).get("error")
    error = found if isinstance(found, dict) else {}
    message = found if isinstance(found, str) else error.get("message")
    return errors.upstream_error(_cut(message) if isinstance(message, str) else "The engine reported an error.")


def _message(body: bytes) -> str:
    """The message in an engine's error, in any of the usual forms; empty without one."""
    found = _object(body)
    for name in ("message", "error", "detail"):
        value = found.get(name)
        if isinstance(value, dict):
            value = value.get("message")
        if isinstance(value, str):
            return _cut(value)
    text = body.lstrip()
    if found or not text or text.startswith((b"<", b"{", b"[")):
        return ""
    return _cut(text.decode("utf-8", "replace").strip())


def _cut(text: str) -> str:
    return text if len(text) <= _MAX_MESSAGE else f"{text[:_MAX_MESSAGE]}..."


def _object(body: bytes) -> dict[str, Any]:
    try:
        found = msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
