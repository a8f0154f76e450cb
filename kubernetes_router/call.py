"""One gRPC call of a worker: how it is answered and ended, whatever it asks for."""

from collections.abc import Callable

from kubernetes_router.grpc_messages import RESPONSE_HEAD, GrpcStatus, trailers
from kubernetes_router.http2.stream import Headers, Http2Stream


class Call:
    """The worker's side of a call; the base of what is done with one."""

    def __init__(self, stream: Http2Stream, on_over: Callable[["Call"], None]) -> None:
        """`on_over` is called once, when the call was ended or the worker is gone."""
        self.stream = stream
        self.over = False
        self._on_over = on_over
        stream.handler = self

    def end(self, status: GrpcStatus, message: str) -> None:
        """End the call with a status, behind what was sent before."""
        self.end_with_trailers(trailers(status, message))

    def end_with_trailers(self, fields: Headers | None) -> None:
        """As `end`, with the trailers of a router; None: it has sent none."""
        if self.over:
            return
        if self.stream.head_sent or fields is None:
            self.stream.send_end(fields)
        else:
            self.stream.send_headers([*RESPONSE_HEAD, *fields], end=True)
        self.finish()

    def finish(self) -> None:
        """Nothing more is done with this call."""
        if not self.over:
            self.over = True
            self._on_over(self)

    # --- StreamHandler ---------------------------------------------------------------------------------------------

    def on_headers(self, headers: Headers, *, ended: bool) -> None:
        """Trailers of a client have no meaning in gRPC."""

    def on_data(self, data: bytes) -> None:
        """Bytes of the request; dropped here."""
        self.stream.consumed(len(data))

    def on_end(self) -> None:
        """The request is complete."""

    def on_reset(self, _code: int | None) -> None:
        """The worker has ended the call (with a code), or its connection is lost (None)."""
        self.finish()

    def on_sent(self, _size: int) -> None:
        """Bytes of the response were given to the connection."""
