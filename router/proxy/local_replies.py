"""Local replies (responses that the router makes itself), and the headers it adds to a worker's response.

Gateways show the bodies to end users byte for byte. Source: docs/proxy.md, "Statuses".
"""

from typing import NamedTuple

import msgspec

from router.registry import Backend
from tunnel_protocol.head import ERROR_CODE, NOT_TO_CALLER, HeaderList, without

_SERVER_ID = b"x-inference-server-id"
_SERVER_URL = b"x-inference-server-url"
_CLUSTER_ID = b"x-stargate-cluster-id"
_NOT_PASSED_ON = NOT_TO_CALLER | {_SERVER_ID, _SERVER_URL, _CLUSTER_ID}


class LocalReply(NamedTuple):
    """A response made by the router itself."""

    status: int
    headers: HeaderList
    body: bytes


def coded(status: int, code: str, error: str) -> LocalReply:
    """A reply whose body and header tell the class of the error; `error` may be any text."""
    headers = [(b"content-type", b"application/json"), (ERROR_CODE, code.encode())]
    return LocalReply(status, headers, msgspec.json.encode({"error": error, "code": code}))


NO_CANDIDATES = coded(404, "no_eligible_candidates", "no eligible candidates")
"""No inference server has registered the model under the routing key."""

TOO_MUCH_INPUT_WORK = coded(503, "input_work_limit_exceeded", "input work admission limit exceeded")
"""Refused by input-work admission."""

OVERLOADED = LocalReply(
    503,
    [(ERROR_CODE, b"overloaded_error"), (b"content-type", b"application/json")],
    b'{"error":{"code":"overloaded_error","message":"Inference capacity is temporarily unavailable.","param":"",'
    b'"type":"overloaded_error"}}',
)
"""Every worker that could serve the request has no capacity for it now. Gateways translate the code in the header."""

UNAVAILABLE = LocalReply(503, [], b"")
"""The target is registered, but no inference server is eligible (any more)."""


def headers_to_client(headers: HeaderList, backend: Backend) -> HeaderList:
    """The headers of a worker's response for the client: those reserved for the router replaced by its own.

    Raises `ValueError` if an id of the worker cannot be a header value.
    """
    passed_on = without(headers, _NOT_PASSED_ON)
    passed_on += (
        (_SERVER_ID, _header_value(backend.inference_server_id)),
        (_SERVER_URL, _header_value(backend.inference_server_url)),
        (_CLUSTER_ID, _header_value(backend.cluster_id)),
    )
    return passed_on


def _header_value(value: str) -> bytes:
    """`value` encoded as a header value. Raises `ValueError` if it is none."""
    if value.isascii() and value.isprintable():
        return value.encode()
    if any((ord(character) < 0x20 and character != "\t") or ord(character) == 0x7F for character in value):
        message = "control character in a header value"
        raise ValueError(message)
    return value.encode()
