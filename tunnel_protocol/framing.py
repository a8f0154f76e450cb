"""The interface `Framing`: how one request and its response are encoded on one QUIC stream. Sans-I/O.

A framing turns calls into bytes to send and received bytes into calls on a sink; it uses no socket, clock or task. There is
one object per stream and role: the router has a `RouterExchange` (sends a request, receives a response), the worker a
`WorkerExchange` (receives a request, sends a response). See docs/protocol.md, "Request streams".

Sinks are called synchronously from `receive`, in the order of the received bytes. After `on_end`, or after `receive` raised
`ProtocolError`, a sink is not called again.
"""

from typing import Protocol

from tunnel_protocol.head import RequestHead, ResponseHead


class ResponseSink(Protocol):
    """Receives one response on the router's side."""

    def on_head(self, head: ResponseHead) -> None:
        """The response head; called exactly once, before anything else."""

    def on_body(self, data: bytes) -> None:
        """One non-empty piece of the body, as the worker sent it in one message."""

    def on_end(self) -> None:
        """The response is complete."""


class RequestSink(Protocol):
    """Receives one request on the worker's side."""

    def on_head(self, head: RequestHead) -> None:
        """The request head; called exactly once, before anything else."""

    def on_body(self, data: bytes) -> None:
        """One non-empty piece of the body."""

    def on_end(self) -> None:
        """The request is complete."""


class RouterExchange(Protocol):
    """The router's side of one request stream."""

    def encode_head(self, head: RequestHead) -> bytes:
        """The bytes that start the stream. Raises `ProtocolError` if the head cannot be expressed in this framing."""

    def encode_body(self, data: bytes) -> bytes:
        """The bytes for one piece of request body (any size; empty gives empty)."""

    def around_body(self, size: int) -> tuple[bytes, bytes]:
        """What `encode_body` writes before and behind a piece of `size` bytes, which can be sent between them without a copy."""

    def encode_end(self) -> bytes:
        """The bytes to send before FIN; often none."""

    def receive(self, data: bytes, fin: bool) -> None:
        """Process received bytes. Raises `ProtocolError`; complete messages before the error have reached the sink."""


class WorkerExchange(Protocol):
    """The worker's side of one request stream."""

    def encode_head(self, head: ResponseHead) -> bytes:
        """The bytes that start the response. Raises `ProtocolError` if the head cannot be expressed in this framing."""

    def encode_body(self, data: bytes) -> bytes:
        """The bytes for one piece of response body (any size; empty gives empty)."""

    def encode_end(self) -> bytes:
        """The bytes to send before FIN; often none."""

    def receive(self, data: bytes, fin: bool) -> None:
        """Process received bytes. Raises `ProtocolError`; complete messages before the error have reached the sink."""


class Framing(Protocol):
    """One encoding of exchanges on streams; stateless, shared by all streams of a process."""

    name: str
    """Canonical mode name: `raw-quic`, `http3` or `webtransport`."""

    def router_exchange(self, sink: ResponseSink) -> RouterExchange:
        """A fresh router half that reports to `sink`."""

    def worker_exchange(self, sink: RequestSink) -> WorkerExchange:
        """A fresh worker half that reports to `sink`."""
