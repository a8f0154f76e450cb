"""Which headers each hop removes; order, repetition and everything else survive."""

from collections.abc import Callable

import pytest

from tunnel_protocol import head
from tunnel_protocol.head import HeaderList

HOP_BY_HOP = [b"connection", b"proxy-connection", b"keep-alive", b"transfer-encoding", b"te", b"trailer", b"upgrade"]
RETRY = [b"x-stargate-retryable", b"x-stargate-retry-reason", b"x-stargate-retry-after-ms"]
KEPT: HeaderList = [
    (b"content-type", b"application/json"),
    (b"x-multi", b"1"),
    (b"authorization", b"Bearer x"),
    (b"x-multi", b"2"),
    (b"retry-after", b"2"),
    (b"x-request-id", b"r"),
    (b"traceparent", b"00-1-2-03"),
    (b"proxy-authorization", b"y"),
]


def through(kind: object, *names: bytes) -> list[bytes]:
    """The names of those that come through, besides `KEPT`, which must come through as they are."""
    assert callable(kind)
    headers = [*KEPT[:3], *((name, b"v") for name in names), *KEPT[3:]]
    found = kind(headers)
    assert [entry for entry in found if entry in KEPT] == KEPT
    return [name for name, _ in found if (name, b"v") in found]


def test_request_enters_the_tunnel_without_what_is_the_router_s_own() -> None:
    internal = [b"host", b"x-routing-method", b"x-stargate-expected-queue-ms", b"x-stargate-error-code"]
    assert not through(head.request_headers_to_worker, *HOP_BY_HOP, *internal, *RETRY)
    passed = [b"content-length", b"x-stargate-upstream-retryable", b"x-dynamo-request-priority", b"x-method", b"expect"]
    assert through(head.request_headers_to_worker, *passed) == passed


def test_request_reaches_the_engine_without_what_was_for_the_worker() -> None:
    internal = [b"host", b"x-method", b"x-path", b"x-stargate-expected-queue-ms", b"x-stargate-upstream-retryable"]
    dialect = [b"x-dynamo-request-priority", b"x-dynamo-request-strict-priority"]
    assert not through(head.request_headers_to_engine, *HOP_BY_HOP, *internal, *RETRY, *dialect)
    passed = [b"content-length", b"x-model", b"x-input-tokens", b"x-priority", b"x-routing-key", b"x-retry"]
    assert through(head.request_headers_to_engine, *passed) == passed
    assert not through(lambda headers: head.request_headers_to_engine(headers, b"x-retry"), b"x-retry")


def test_response_enters_the_tunnel_without_what_an_engine_may_not_say() -> None:
    internal = [b"content-length", b"x-stargate-upstream-retryable", b"x-method", b"x-path", b"x-status"]
    assert not through(head.response_headers_to_router, *HOP_BY_HOP, *internal, *RETRY)
    passed = [b"date", b"server", b"x-retry"]
    assert through(head.response_headers_to_router, *passed) == passed
    assert not through(lambda headers: head.response_headers_to_router(headers, b"x-retry"), b"x-retry")


def to_caller(headers: HeaderList) -> HeaderList:
    return [entry for entry in headers if entry[0] not in head.NOT_TO_CALLER]


def test_response_reaches_the_caller_without_what_only_the_router_may_say() -> None:
    internal = [b"host", b"x-routing-method", b"x-stargate-expected-queue-ms", b"x-stargate-error-code"]
    tunnel = [b"x-method", b"x-path", b"x-status"]
    assert not through(to_caller, *HOP_BY_HOP, *internal, *RETRY, *tunnel)
    passed = [b"content-length", b"date", b"server", b"set-cookie"]
    assert through(to_caller, *passed) == passed


@pytest.mark.parametrize("name", HOP_BY_HOP)
def test_hop_by_hop_names_are_known(name: bytes) -> None:
    assert name in head.HOP_BY_HOP
    assert b"host" not in head.HOP_BY_HOP


@pytest.mark.parametrize(
    "through_",
    [
        head.request_headers_to_worker,
        head.request_headers_to_engine,
        head.response_headers_to_router,
        lambda headers: head.without(headers, head.NOT_TO_CALLER),
    ],
    ids=["to the worker", "to the engine", "to the router", "to the caller"],
)
def test_headers_that_a_connection_header_lists_are_removed(through_: Callable[..., HeaderList]) -> None:
    headers = [
        (b"x-first", b"1"),
        (b"connection", b"keep-alive,X-First , host"),
        (b"x-kept", b"2"),
        (b"connection", b"\tx-Second"),
        (b"x-second", b"3"),
        (b"x-second", b"4"),
    ]
    assert through_(headers) == [(b"x-kept", b"2")]


def test_the_length_remains_although_a_connection_header_lists_it() -> None:
    headers = [(b"connection", b"content-length"), (b"content-length", b"3")]
    assert head.request_headers_to_worker(headers) == headers[1:]
