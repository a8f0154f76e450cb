"""Local replies (responses that the router makes itself), and the headers it adds to a worker's response.

Gateways show the bodies to end users byte for byte. Source: docs/proxy.md, "Statuses".
"""

from typing import Final, NamedTuple

import msgspec

from router.http1.response import ResponseWriter
from router.registry import Backend
from tunnel_protocol.head import ERROR_CODE, NOT_TO_CALLER, HeaderList, without

_SERVER_ID: Final = b"x-inference-server-id"
_SERVER_URL: Final = b"x-inference-server-url"
_CLUSTER_ID: Final = b"x-stargate-cluster-id"
_JSON: Final = (b"content-type", b"application/json")
_SERVER_ERROR: Final = 500
_CODES: Final = {
    404: "unknown_path",
    405: "method_not_allowed",
    408: "request_timeout",
    413: "request_too_large",
    414: "request_target_too_long",
    431: "request_headers_too_large",
    500: "internal_error",
    502: "no_answer",
    503: "unavailable",
}
_NOT_PASSED_ON: Final = NOT_TO_CALLER | {_SERVER_ID, _SERVER_URL, _CLUSTER_ID}


class LocalReply(NamedTuple):
    """A response made by the router itself."""

    status: int
    headers: HeaderList
    body: bytes
    """The body of the contract with gateways; empty for most replies."""
    reason: str
    """Why, in a few words: one of a fixed set, for metrics, the log, and clients that get a body with it."""
    code: str = ""
    """The reason for programs; without one it is made of the status or the reason."""

    def send(self, response: ResponseWriter, *, with_reason: bool) -> None:
        """Answer. `with_reason`: a reply without a body of the contract gets one in the shape of OpenAI's errors."""
        if with_reason and not self.body:
            response.send(self.status, [*self.headers, _JSON], self._reason_as_json())
        else:
            response.send(self.status, self.headers, self.body)

    def _reason_as_json(self) -> bytes:
        error = {
            "message": self.reason,
            "type": "server_error" if self.status >= _SERVER_ERROR else "invalid_request_error",
            "param": None,
            "code": self.code or _CODES.get(self.status) or self.reason.replace("-", "_").replace(" ", "_"),
        }
        return msgspec.json.encode({"error": error})


def plain(status: int, reason: str, code: str = "") -> LocalReply:
    """A reply that has no body in the contract."""
    return LocalReply(status, [], b"", reason, code)


def coded(status: int, code: str, error: str, reason: str = "") -> LocalReply:
    """A reply whose body and header tell the class of the error; `error` may be any text, and is the reason if none is given."""
    headers = [_JSON, (ERROR_CODE, code.encode())]
    return LocalReply(status, headers, msgspec.json.encode({"error": error, "code": code}), reason or error)


NO_CANDIDATES: Final = coded(404, "no_eligible_candidates", "no eligible candidates")
"""No inference server has registered the model under the routing key."""

TOO_MUCH_INPUT_WORK: Final = coded(503, "input_work_limit_exceeded", "input work admission limit exceeded")
"""Refused by input-work admission."""

OVERLOADED: Final = LocalReply(
    503,
    [(ERROR_CODE, b"overloaded_error"), (b"content-type", b"application/json")],
    b'{"error":{"code":"overloaded_error","message":"Inference capacity is temporarily unavailable.","param":"",'
    b'"type":"overloaded_error"}}',
    "no capacity",
)
"""Every worker that could serve the request has no capacity for it now. Gateways translate the code in the header."""

UNAVAILABLE: Final = plain(503, "no worker can take the request now")
"""The target is registered, but no inference server is eligible (any more)."""

NO_ANSWER: Final = plain(502, "no answer from a worker")
"""The last attempt got no response head."""

AMBIGUOUS: Final = plain(502, "no answer from the worker, which may have processed the request", "ambiguous_delivery")
"""The attempt got no response head after the whole request had been passed on, so it is not sent again."""

NOT_REPEATABLE: Final = plain(413, "request body too large to be sent again")
"""Another attempt is due, and the body outgrew its copy."""

NOT_FORWARDABLE: Final = plain(500, "names of the worker cannot be sent as headers")
"""The answer of a worker cannot be passed on."""


def headers_to_client(headers: HeaderList, backend: Backend, *, drop_listed: bool) -> HeaderList:
    """The headers of a worker's response for the client: those reserved for the router replaced by its own.

    `drop_listed`: what `Connection` lists is removed too. Raises `ValueError` if an id of the worker cannot be a header value.
    """
    registration = backend.registration
    fields = registration.answer_fields
    if fields is None:
        fields = registration.answer_fields = [
            (_SERVER_ID, _header_value(backend.inference_server_id)),
            (_SERVER_URL, _header_value(backend.inference_server_url)),
            (_CLUSTER_ID, _header_value(backend.cluster_id)),
        ]
    passed_on = without(headers, _NOT_PASSED_ON, listed=drop_listed)
    passed_on += fields
    return passed_on


def _header_value(value: str) -> bytes:
    """`value` encoded as a header value. Raises `ValueError` if it is none."""
    if value.isascii() and value.isprintable():
        return value.encode()
    if any((ord(character) < 0x20 and character != "\t") or ord(character) == 0x7F for character in value):
        message = "control character in a header value"
        raise ValueError(message)
    return value.encode()
