"""The Framing interface: how one request and its response are written on one QUIC stream. Sans-I/O.

A framing turns calls into bytes to write and received bytes into calls on a sink; it knows no socket, no clock and no
task. There is one object per stream and role: the router holds a `RouterExchange` (sends a request, receives a response),
the worker a `WorkerExchange` (the mirror image). See docs/protocol.md, "Request streams".

Sinks are called synchronously from `receive`, in wire order. After `on_end`, or after `receive` raised `ProtocolError`, a
sink is never called again.
"""

from typing import Protocol

from tunnel_protocol.head import RequestHead, ResponseHead


class ResponseSink(Protocol):
    """Receives one response on the router's side."""

    def on_head(self, head: ResponseHead) -> None:
        """The response head; called exactly once, before anything else."""

    def on_body(self, data: bytes) -> None:
        """One non-empty piece of the body, cut as the worker cut it."""

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
    """The router's half of one request stream."""

    def encode_head(self, head: RequestHead) -> bytes:
        """The bytes that start the stream. Raises `ProtocolError` if the head cannot be expressed in this framing."""

    def encode_body(self, data: bytes) -> bytes:
        """The bytes for one piece of request body (any size; empty gives empty)."""

    def encode_end(self) -> bytes:
        """The bytes before FIN; often none."""

    def receive(self, data: bytes, fin: bool) -> None:
        """Feed received stream bytes. Raises `ProtocolError`; what was complete before the fault has reached the sink."""


class WorkerExchange(Protocol):
    """The worker's half of one request stream."""

    def encode_head(self, head: ResponseHead) -> bytes:
        """The bytes that start the response. Raises `ProtocolError` if the head cannot be expressed in this framing."""

    def encode_body(self, data: bytes) -> bytes:
        """The bytes for one piece of response body (any size; empty gives empty)."""

    def encode_end(self) -> bytes:
        """The bytes before FIN; often none."""

    def receive(self, data: bytes, fin: bool) -> None:
        """Feed received stream bytes. Raises `ProtocolError`; what was complete before the fault has reached the sink."""


class Framing(Protocol):
    """One way to write exchanges on streams; stateless, shared by all streams of a process."""

    name: str
    """Canonical mode name: `raw-quic`, `http3` or `webtransport`."""

    def router_exchange(self, sink: ResponseSink) -> RouterExchange:
        """A fresh router half that reports to `sink`."""

    def worker_exchange(self, sink: RequestSink) -> WorkerExchange:
        """A fresh worker half that reports to `sink`."""
