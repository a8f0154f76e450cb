"""The head of the request that a worker gets: made anew, with the fields a gateway would send. No I/O.

Of a client's fields only those that tell of it and of its trace pass. Keys, cookies and whatever could steer routing or an engine
stay here.
"""

from typing import Final

from router.balancing import RoutingRequest
from router.http1.request import ClientRequest, RequestBody
from router.openai.endpoints import Endpoint

_PASSED_ON: Final = (b"user-agent", b"traceparent", b"tracestate", b"baggage")


def request_for_worker(
    client: ClientRequest,
    endpoint: Endpoint,
    routing: RoutingRequest,
    request_id: bytes,
    output_tokens: int | None,
    priority: int | None,
    body: bytes,
) -> ClientRequest:
    """The request that routing and relay get in place of the client's. `routing` and the rest is what the front has found out."""
    input_tokens = routing.input_tokens or 0
    told_input = str(input_tokens).encode()
    fields: dict[bytes, bytes] = {
        b"content-type": b"application/json",
        b"accept": b"text/event-stream" if endpoint.streams else b"application/json",
        b"content-length": str(len(body)).encode(),
        b"x-request-id": request_id,
        b"x-model": routing.model.encode(),
        b"x-input-tokens": told_input,
        b"x-token-estimate": str(input_tokens + output_tokens).encode() if output_tokens else told_input,
    }
    if routing.routing_key is not None:
        fields[b"x-routing-key"] = routing.routing_key.encode()
    if routing.affinity_key is not None:
        fields[b"x-cache-affinity-key"] = routing.affinity_key.encode()
    if priority is not None:
        fields[b"x-priority"] = b"%d" % priority
    first = client.first
    for name in _PASSED_ON:
        if name in first:
            fields[name] = first[name]
    return ClientRequest(
        b"POST",
        endpoint.target,
        list(fields.items()),
        fields,
        http_1_0=False,
        keep_alive=True,
        received_at=client.received_at,
        body=_whole(body),
    )


def _whole(raw: bytes) -> RequestBody:
    """A body that has arrived."""
    body = RequestBody(_nothing_arrives)
    body.feed(raw)
    body.finish()
    return body


def _nothing_arrives(reading: bool) -> None:
    """There is nobody to be paused."""
