"""Local replies of the worker, and the retry metadata that it adds to its engine's responses."""

import email.utils
import re
import time
from http import HTTPStatus

import msgspec

from stargate_client.settings import RetryPolicy
from tunnel_protocol.head import (
    RETRY_AFTER_MS,
    RETRY_REASON,
    RETRYABLE,
    HeaderList,
    ResponseHead,
    response_headers_to_router,
)

_NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+\Z").match
_TEXTUAL = bytes(range(0x20, 0x7F)) + b"\t"


class Problem(Exception):  # noqa: N818 - it is the response, not an internal error
    """Ends a request with a problem document (RFC 9457) instead of the engine's response."""

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        retryable: bool | None = None,
        reason: str | None = None,
        retry_after_ms: int | None = None,
        members: dict[str, object] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.retryable = retryable
        self.reason = reason
        self.retry_after_ms = retry_after_ms
        self.members = members or {}

    def head(self) -> ResponseHead:
        """The head of the response."""
        headers: HeaderList = [(b"content-type", b"application/problem+json")]
        if self.retryable is not None and self.reason is not None:
            headers.append((RETRYABLE, b"true" if self.retryable else b"false"))
            headers.append((RETRY_REASON, self.reason.encode()))
        if self.retry_after_ms is not None:
            headers.append((RETRY_AFTER_MS, b"%d" % self.retry_after_ms))
        return ResponseHead(self.status, headers)

    def body(self) -> bytes:
        """The problem document as JSON."""
        document = {
            "type": "about:blank",
            "title": HTTPStatus(self.status).phrase,
            "status": self.status,
            "detail": self.detail,
            **self.members,
        }
        return msgspec.json.encode(document)


def engine_head(status: int, headers: HeaderList, policy: RetryPolicy) -> ResponseHead:
    """An engine's response head as it enters the tunnel: filtered, with retry metadata where `policy` requires it."""
    kept = response_headers_to_router(headers, policy.header)
    if status in policy.statuses and (not policy.require_header or _signalled(headers, policy.header)):
        kept.append((RETRYABLE, b"true"))
        kept.append((RETRY_REASON, b"upstream_admission_rejected"))
        after = _retry_after_ms(headers) if policy.propagate_retry_after else None
        if after is not None:
            kept.append((RETRY_AFTER_MS, b"%d" % after))
    return ResponseHead(status, kept)


def carried(headers: HeaderList) -> HeaderList:
    """The headers that every framing can encode: names that are tokens, values of printable ASCII and tabs."""
    return [entry for entry in headers if _NAME(entry[0]) and not entry[1].translate(None, _TEXTUAL)]


def _signalled(headers: HeaderList, name: bytes) -> bool:
    return any(entry[0] == name and entry[1].strip().lower() == b"true" for entry in headers)


def _retry_after_ms(headers: HeaderList) -> int | None:
    for name, value in headers:
        if name == b"retry-after":
            text = value.decode("latin-1").strip()
            if text.isdigit():
                return int(text) * 1000 if len(text) < 16 else None
            try:
                at = email.utils.parsedate_to_datetime(text).timestamp()
            except ValueError:
                return None
            return max(0, int((at - time.time()) * 1000))
    return None
