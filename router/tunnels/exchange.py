"""One request and its response on one QUIC stream: connects a stream, a framing and the owner's sink.

Everything is a synchronous callback: received bytes go from the stream through the framing into the sink within one call, so
a chunk needs no task, no future and no copy. See docs/protocol.md, "Request streams" and "Failures".

A sink that pauses while a received piece is being parsed still gets the rest of that piece, at most the stream window.
"""

from typing import Final

from router.ports.tunnels import NULL_SINK, ExchangeSink, TunnelError
from tunnel_protocol.errors import ConnectionClosedError, ProtocolError
from tunnel_protocol.framing import Framing, RouterExchange
from tunnel_protocol.head import RequestHead, ResponseHead
from tunnel_protocol.quic.stream_interface import Stream, StreamHandler

ABANDONED: Final = 0
"""The error code of every RESET_STREAM and STOP_SENDING on tunnels; peers do not interpret it."""


_LARGE_BYTES: Final = 16_384
"""Pieces of a request body from this size on are not copied into a message, but sent between its beginning and its end."""


class ExchangeCallbacks:
    """What an exchange uses of its tunnel."""

    def __init__(self, inference_server_id: str) -> None:
        self.inference_server_id = inference_server_id
        self.pieces_received = 0
        """Number of received pieces of responses; a change shows that the worker is alive."""

    def exchange_over(self) -> None:
        """Called once by every exchange, when both of its directions have ended."""
        raise NotImplementedError


class StreamExchange(StreamHandler):
    """Implements the `Exchange` port, and `ResponseSink` for its framing; the handler of its stream.

    After the end of the response, a running upload is still reported to the sink (`on_upload_writable`,
    `on_upload_stopped`); after `on_failed` or `cancel` no callback follows.
    """

    __deletable__ = ["_framing"]  # noqa: RUF012 - for mypyc, which wants a list
    __slots__ = (
        "_failure",
        "_fin_sent",
        "_framing",
        "_over",
        "_owner",
        "_response_over",
        "_sink",
        "_stream",
        "_upload_over",
    )

    def __init__(self, owner: ExchangeCallbacks, framing: Framing, sink: ExchangeSink) -> None:
        self._owner = owner
        self._sink: ExchangeSink = sink
        self._framing: RouterExchange = framing.router_exchange(self)
        self._stream: Stream | None = None
        self._failure: TunnelError | None = None
        self._fin_sent = False
        self._upload_over = False
        self._response_over = False
        self._over = False

    # --- opening (by the tunnel) -------------------------------------------------------------------------------------

    def encode_head(self, head: RequestHead) -> bytes:
        """The first bytes of the stream; raises `TunnelError` if the framing cannot express `head`."""
        try:
            return self._framing.encode_head(head)
        except ProtocolError as error:
            raise TunnelError(f"failed to send request head: {error.reason}") from error

    def begin(self, stream: Stream, first: bytes, *, end: bool) -> None:
        """Send the head on the stream opened for this exchange; raises `TunnelError` if the exchange has already failed."""
        if self._failure is not None:
            raise self._failure
        if end:
            stream.write(first + self._framing.encode_end(), fin=True)
            self._fin_sent = self._upload_over = True
        else:
            stream.write(first)
        self._stream = stream

    # --- Exchange (called by the attempt) ----------------------------------------------------------------------------

    def send_body(self, data: bytes) -> bool:
        """Queue one piece of request body. False: enough is buffered, wait for `on_upload_writable`."""
        stream = self._stream
        if self._upload_over or stream is None or not data:
            return True
        if len(data) < _LARGE_BYTES:
            return stream.write(self._framing.encode_body(data))
        before, behind = self._framing.around_body(len(data))
        stream.write(before)
        writable = stream.write(data)
        return stream.write(behind) if behind else writable

    def end_body(self) -> None:
        """The request body is complete (FIN)."""
        if self._upload_over or self._stream is None:
            return
        self._fin_sent = self._upload_over = True
        self._stream.write(self._framing.encode_end(), fin=True)
        self._settle()

    def abort_upload(self) -> None:
        """Abandon the request body (RESET_STREAM 0); the response continues. No effect after `end_body`."""
        if self._upload_over or self._stream is None:
            return
        self._upload_over = True
        self._stream.reset(ABANDONED)
        self._settle()

    def cancel(self) -> None:
        """Abandon both directions with code 0; the sink is not called again. No effect after the end."""
        self._sink = NULL_SINK
        self._abandon()

    def pause(self) -> None:
        """Stop delivering the response and granting credit for it."""
        if self._stream is not None and not self._response_over:
            self._stream.pause_reading()

    def resume(self) -> None:
        """Continue after `pause`."""
        if self._stream is not None and not self._response_over:
            self._stream.resume_reading()

    def upload_acknowledged(self) -> bool:
        """True once the worker has acknowledged every byte of the request including FIN."""
        return self._fin_sent and self._stream is not None and self._stream.acknowledged()

    # --- StreamHandler (called by the QUIC connection) ---------------------------------------------------------------

    def on_data(self, data: bytes, fin: bool) -> None:
        """Parse received bytes; every complete part is passed to the sink before this returns."""
        if self._response_over:
            return
        self._owner.pieces_received += 1
        try:
            self._framing.receive(data, fin)
        except ProtocolError as error:
            self._fail(error.reason)
        else:
            self._settle(fin=fin)

    def on_reset(self, error_code: int) -> None:
        """The worker reset the response (RESET_STREAM)."""
        if not self._response_over:
            self._fail(f"stream reset by inference server '{self._owner.inference_server_id}' (code {error_code})")

    def on_stop(self, error_code: int) -> None:  # noqa: ARG002 - the code means nothing on tunnels
        """The worker does not take the rest of the request body (STOP_SENDING). Not a failure: a response may follow."""
        if not self._upload_over:
            self._upload_over = True
            self._sink.on_upload_stopped()
            self._settle()

    def on_writable(self) -> None:
        """The stream accepts request body again."""
        if not self._upload_over:
            self._sink.on_upload_writable()

    def on_connection_lost(self, error: ConnectionClosedError) -> None:
        """The connection has closed: every direction that was still open fails."""
        reason = f"connection to inference server '{self._owner.inference_server_id}' is closed"
        if error.reason:
            reason = f"{reason}: {error.reason}"
        if not self._response_over:
            self._fail(reason)
        elif not self._upload_over:
            self._upload_over = True
            self._sink.on_upload_stopped()
            self._settle()

    # --- ResponseSink (called by the framing) ------------------------------------------------------------------------

    def on_head(self, head: ResponseHead) -> None:
        """Pass the response head to the sink."""
        self._sink.on_head(head)

    def on_body(self, data: bytes) -> None:
        """Pass a chunk of the response body to the sink."""
        self._sink.on_body(data)

    def on_end(self) -> None:
        """Report the end of the response to the sink."""
        self._response_over = True
        self._sink.on_end()

    # -----------------------------------------------------------------------------------------------------------------

    def _fail(self, reason: str) -> None:
        error = TunnelError(reason, accepted=self.upload_acknowledged())
        if self._stream is None:
            # The stream is open, but the task that opened it has not resumed yet: `begin` will raise this.
            self._failure = error
            return
        sink = self._sink
        self._sink = NULL_SINK
        self._abandon()
        sink.on_failed(error)

    def _abandon(self) -> None:
        if self._over or self._stream is None:
            return
        if not self.upload_acknowledged():
            self._stream.reset(ABANDONED)
        self._stream.stop(ABANDONED)
        self._upload_over = self._response_over = True
        self._settle()

    def _settle(self, *, fin: bool = True) -> None:
        if not self._response_over or self._over:
            return
        if not fin and self._stream is not None:
            # The framing saw the end of the response before FIN (trailers): later bytes are ignored.
            self._stream.stop(ABANDONED)
        if self._upload_over:
            self._over = True
            # Cut the reference cycles: an exchange is freed when its owner drops it, without the garbage collector.
            self._sink = NULL_SINK
            del self._framing
            self._owner.exchange_over()
