"""What a client gets from the router itself, and what every answer of a worker is given on its way to the client.

The bodies are shown to end users by gateways, byte for byte; see docs/proxy.md, "Statuses".
"""

from typing import NamedTuple

from router.registry import Backend
from tunnel_protocol.head import ERROR_CODE, NOT_TO_CALLER, HeaderList

_SERVER_ID = b"x-inference-server-id"
_SERVER_URL = b"x-inference-server-url"
_CLUSTER_ID = b"x-stargate-cluster-id"
_NOT_PASSED_ON = NOT_TO_CALLER | {_SERVER_ID, _SERVER_URL, _CLUSTER_ID}


class LocalReply(NamedTuple):
    """An answer without a worker."""

    status: int
    headers: HeaderList
    body: bytes


def _coded(status: int, code: str, error: str) -> LocalReply:
    headers = [(b"content-type", b"application/json"), (ERROR_CODE, code.encode())]
    return LocalReply(status, headers, f'{{"error":"{error}","code":"{code}"}}'.encode())


NO_CANDIDATES = _coded(404, "no_eligible_candidates", "no eligible candidates")
"""Nobody has registered the model under the routing key."""

TOO_MUCH_INPUT_WORK = _coded(503, "input_work_limit_exceeded", "input work admission limit exceeded")
"""Admission by input work refused."""

UNAVAILABLE = LocalReply(503, [], b"")
"""There are workers, but none is eligible (any more)."""


def headers_to_client(headers: HeaderList, backend: Backend) -> HeaderList:
    """Headers of a worker's answer as the client gets them: with its names, and nothing of what is the router's to say.

    Raises `ValueError` if a name of the worker cannot be a header value.
    """
    passed_on = [entry for entry in headers if entry[0] not in _NOT_PASSED_ON]
    passed_on += (
        (_SERVER_ID, _header_value(backend.inference_server_id)),
        (_SERVER_URL, _header_value(backend.inference_server_url)),
        (_CLUSTER_ID, _header_value(backend.cluster_id)),
    )
    return passed_on


def _header_value(value: str) -> bytes:
    """`value` as a header value. Raises `ValueError` if it cannot be one."""
    if value.isascii() and value.isprintable():
        return value.encode()
    if any((ord(character) < 0x20 and character != "\t") or ord(character) == 0x7F for character in value):
        message = "control character in a header value"
        raise ValueError(message)
    return value.encode()
