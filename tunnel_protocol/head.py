"""Request and response heads as they cross a tunnel, and the header names that each hop removes.

Heads hold bytes, as HTTP listeners and tunnels receive them; only what is needed is decoded to text. Header names are lower
case; order and repetition are kept. See docs/protocol.md, "Heads".
"""

from typing import Final

HeaderList = list[tuple[bytes, bytes]]
"""Ordered (lower-case name, value) pairs; repeated names are separate entries."""


class RequestHead:
    """Method, path with query exactly as received, and headers of a request. Not changed once it is made."""

    # Not a named tuple, as nothing is that is made for every request: a class is made in a tenth of the time when compiled.
    __slots__ = ("headers", "method", "path")

    def __init__(self, method: bytes, path: bytes, headers: HeaderList) -> None:
        self.method = method
        self.path = path
        self.headers = headers

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, RequestHead):
            return NotImplemented
        return self.method == other.method and self.path == other.path and self.headers == other.headers

    def __repr__(self) -> str:
        return f"RequestHead({self.method!r}, {self.path!r}, {self.headers!r})"


class ResponseHead:
    """Status (100..999) and headers of a response. Not changed once it is made."""

    __slots__ = ("headers", "status")

    def __init__(self, status: int, headers: HeaderList) -> None:
        self.status = status
        self.headers = headers

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ResponseHead):
            return NotImplemented
        return self.status == other.status and self.headers == other.headers

    def __repr__(self) -> str:
        return f"ResponseHead({self.status!r}, {self.headers!r})"


HOP_BY_HOP: Final = frozenset(
    (b"connection", b"proxy-connection", b"keep-alive", b"transfer-encoding", b"te", b"trailer", b"upgrade")
)
"""Hop-by-hop header names (RFC 9110 section 7.6.1), besides those that a `Connection` header lists."""

_NEVER_HOP_BY_HOP: Final = frozenset((b"content-length",))
"""Names that remain although a `Connection` header lists them: without it the message would be another one."""

EXPECTED_QUEUE_MS: Final = b"x-stargate-expected-queue-ms"
RETRYABLE: Final = b"x-stargate-retryable"
RETRY_REASON: Final = b"x-stargate-retry-reason"
RETRY_AFTER_MS: Final = b"x-stargate-retry-after-ms"
UPSTREAM_RETRYABLE: Final = b"x-stargate-upstream-retryable"
ERROR_CODE: Final = b"x-stargate-error-code"
METHOD: Final = b"x-method"
PATH: Final = b"x-path"
STATUS: Final = b"x-status"

_ROUTER_INTERNAL: Final = frozenset(
    (b"host", b"x-routing-method", RETRYABLE, RETRY_REASON, RETRY_AFTER_MS, EXPECTED_QUEUE_MS, ERROR_CODE)
)
NOT_TO_WORKER: Final = HOP_BY_HOP | _ROUTER_INTERNAL
"""Names that the router removes from a client's request before it enters a tunnel."""

NOT_TO_CALLER: Final = HOP_BY_HOP | _ROUTER_INTERNAL | {METHOD, PATH, STATUS}
"""Names that the router removes from a worker's response, because only the router may set them for the client."""

NOT_TO_ENGINE: Final = HOP_BY_HOP | {
    b"host",
    METHOD,
    PATH,
    EXPECTED_QUEUE_MS,
    UPSTREAM_RETRYABLE,
    RETRYABLE,
    RETRY_REASON,
    RETRY_AFTER_MS,
    b"x-dynamo-request-priority",
    b"x-dynamo-request-strict-priority",
}
"""Names that a worker removes from a tunnelled request before it calls its engine, besides its configured retry header."""

NOT_TO_ROUTER: Final = HOP_BY_HOP | {
    b"content-length",
    UPSTREAM_RETRYABLE,
    RETRYABLE,
    RETRY_REASON,
    RETRY_AFTER_MS,
    METHOD,
    PATH,
    STATUS,
}
"""Names that a worker removes from its engine's response, because only the worker may set them."""


def request_headers_to_worker(
    headers: HeaderList, drop: frozenset[bytes] = NOT_TO_WORKER, *, listed: bool = True
) -> HeaderList:
    """A client's headers as they enter a tunnel: in order, without those in `drop` and what `Connection` lists.

    `drop` contains `NOT_TO_WORKER`.
    """
    return without(headers, drop, listed=listed)


def without(headers: HeaderList, drop: frozenset[bytes], *, listed: bool = True) -> HeaderList:
    """`headers` in order, without the names in `drop`, one of which is `connection`, and those that `Connection` lists.

    `listed=False` keeps those that `Connection` lists.
    """
    kept: HeaderList = []
    lists_some = False
    for entry in headers:
        name = entry[0]
        if name not in drop:
            kept.append(entry)
        elif name == b"connection":
            lists_some = True
    if not listed or not lists_some:
        return kept
    named = {
        token.strip(b" \t").lower() for name, value in headers if name == b"connection" for token in value.split(b",")
    } - _NEVER_HOP_BY_HOP
    return [entry for entry in kept if entry[0] not in named] if named else kept


def request_headers_to_engine(headers: HeaderList, retry_header: bytes = UPSTREAM_RETRYABLE) -> HeaderList:
    """A tunnelled request's headers as the engine gets them, without `NOT_TO_ENGINE` and the configured retry header."""
    return [entry for entry in without(headers, NOT_TO_ENGINE) if entry[0] != retry_header]


def response_headers_to_router(headers: HeaderList, retry_header: bytes = UPSTREAM_RETRYABLE) -> HeaderList:
    """An engine's response headers as they enter the tunnel, without `NOT_TO_ROUTER` and the configured retry header."""
    return [entry for entry in without(headers, NOT_TO_ROUTER) if entry[0] != retry_header]
