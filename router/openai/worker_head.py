"""The head of the request that a worker gets: made anew, with the fields a gateway would send. No I/O.

Of a client's fields only those that tell of it and of its trace pass. Keys, cookies and whatever could steer routing or an engine
stay here.
"""

from typing import Final, NamedTuple

from router.http1.request import ClientRequest, RequestBody
from router.openai.endpoints import Endpoint
from tunnel_protocol.head import HeaderList

_PASSED_ON: Final = (b"user-agent", b"traceparent", b"tracestate", b"baggage")


class RoutingValues(NamedTuple):
    """What the front has found out about a request."""

    request_id: str
    routing_key: str | None
    model: str
    input_tokens: int
    output_tokens: int | None
    affinity_key: str | None
    priority: int | None


def request_for_worker(client: ClientRequest, endpoint: Endpoint, values: RoutingValues, body: bytes) -> ClientRequest:
    """The request that routing and relay get in place of the client's."""
    headers: HeaderList = [
        (b"content-type", b"application/json"),
        (b"accept", b"text/event-stream" if endpoint.streams else b"application/json"),
        (b"content-length", b"%d" % len(body)),
        (b"x-request-id", values.request_id.encode()),
        (b"x-model", values.model.encode()),
        (b"x-input-tokens", b"%d" % values.input_tokens),
        (b"x-token-estimate", b"%d" % (values.input_tokens + (values.output_tokens or 0))),
    ]
    if values.routing_key is not None:
        headers.append((b"x-routing-key", values.routing_key.encode()))
    if values.affinity_key is not None:
        headers.append((b"x-cache-affinity-key", values.affinity_key.encode()))
    if values.priority is not None:
        headers.append((b"x-priority", b"%d" % values.priority))
    first = client.first
    headers += [(name, first[name]) for name in _PASSED_ON if name in first]
    return ClientRequest(
        b"POST",
        endpoint.path.encode(),
        headers,
        dict(headers),
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
