"""One gRPC call: messages in and out of a stream, its deadline and its status.

Source: "gRPC over HTTP2" (PROTOCOL-HTTP2.md of grpc/grpc). Messages are not compressed, as those of the reference are not.
"""

import asyncio
from collections.abc import Callable
from typing import Final

from router.grpc import header_blocks
from router.grpc.header_blocks import Metadata
from router.grpc.header_decoder import Headers
from router.grpc.http2_connection import Http2Connection
from router.grpc.status import CallError, Status
from router.grpc.stream import Http2Stream, Receiver
from tunnel_protocol.control.grpc_options import MESSAGE
from tunnel_protocol.limit import Limit

WRITE_AHEAD: Final = Limit("grpc.write_ahead", bytes=65_536)
"""Sent messages that wait for a peer which does not read; beyond it the call waits, too."""

PARTIAL_MESSAGES: Final = Limit("grpc.partial_messages", bytes=32 << 20)
"""Received parts of messages on all calls of a connection."""

_MAX_MESSAGE: Final = MESSAGE.bytes or 0
_PARTIAL: Final = PARTIAL_MESSAGES.bytes or 0
_WRITE_AHEAD: Final = WRITE_AHEAD.bytes or 0
_PREFIX_BYTES: Final = 5


def framed(message: bytes) -> bytes:
    """A message with its prefix."""
    return b"\0" + len(message).to_bytes(4, "big") + message


class Call(Receiver):
    """What a handler has of its call. Methods that send do nothing once the call is over; the handler is cancelled then."""

    def __init__(
        self,
        connection: Http2Connection,
        stream: Http2Stream,
        peer: str,
        fields: Headers,
        on_over: Callable[["Call"], None],
    ) -> None:
        """`on_over` is called once: when the call was ended, or its peer is gone."""
        self.peer = peer
        """Where the call comes from, as the gRPC library writes it: `ipv4:10.0.0.1:1234`, `ipv6:[::1]:1234`."""
        self.over = False
        self._fields = fields
        self._connection = connection
        self._stream = stream
        self._on_over = on_over
        self._on_message: Callable[[bytes], None] | None = None
        self._on_closed: Callable[[], None] | None = None
        self._partial = bytearray()
        self._task: asyncio.Task[None] | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._first: asyncio.Future[bytes | None] | None = None
        self._sent: asyncio.Future[None] | None = None

    # --- For the server --------------------------------------------------------------------------------------------

    def begin(self, task: "asyncio.Task[None]", timeout_s: float | None) -> None:
        """`task` runs the handler; the caller waits for `timeout_s` seconds."""
        self._task = task
        if timeout_s is not None:
            self._deadline = asyncio.get_running_loop().call_later(timeout_s, self._timed_out)

    def _timed_out(self) -> None:
        self.fail(Status.DEADLINE_EXCEEDED, "Deadline Exceeded")

    # --- For handlers ----------------------------------------------------------------------------------------------

    @property
    def metadata(self) -> Metadata:
        """What the caller sent beside its message; empty once the call is over."""
        return header_blocks.metadata(self._fields)

    def first_value(self, name: str) -> str | bytes | None:
        """The first value of key `name` of the metadata; None without one, or once the call is over."""
        return header_blocks.first_value(self._fields, name)

    def send_initial_metadata(self) -> None:
        """Send the head of the response, if it was not."""
        if not self.over and not self._stream.head_sent:
            self._connection.send_headers(self._stream, header_blocks.RESPONSE)

    def receive(self, on_message: Callable[[bytes], None], on_closed: Callable[[], None]) -> None:
        """From now on each message is given to `on_message`, those that have come first; `on_closed`: none follows.

        They are called in the event loop, while bytes of the connection are read. Messages that are not received wait in their
        stream's window.
        """
        self._on_message, self._on_closed = on_message, on_closed
        waiting = len(self._partial)
        if waiting:
            self._connection.consumed(self._stream, waiting)
            self._connection.partial_bytes += waiting
            self._parse()
        if self._stream.received_end and not self.over:
            on_closed()

    async def read(self) -> bytes:
        """The one message of a call that has one. Raises `CallError` if there is none."""
        first = asyncio.get_running_loop().create_future()
        self._first = first
        self.receive(self._got_first, self._got_none)
        try:
            message: bytes | None = await first
        finally:
            self._first = None
        if message is None:
            raise CallError(Status.INTERNAL, "the call has no message")
        return message

    def _got_first(self, message: bytes) -> None:
        if self._first is not None and not self._first.done():
            self._first.set_result(message)

    def _got_none(self) -> None:
        if self._first is not None and not self._first.done():
            self._first.set_result(None)

    @property
    def writable(self) -> bool:
        """Whether the peer has taken everything that was written."""
        return not self._stream.unsent

    def write_now(self, message: bytes) -> None:
        """Send a message, or have it wait; for callers that look at `writable`."""
        self.send_initial_metadata()
        self._connection.send(self._stream, framed(message))

    async def write(self, message: bytes) -> None:
        """Send a message; returns when at most `WRITE_AHEAD` of what was written waits for the peer."""
        self.write_now(message)
        while len(self._stream.unsent) > _WRITE_AHEAD and not self.over:
            sent = asyncio.get_running_loop().create_future()
            self._sent = sent
            try:
                await sent
            finally:
                self._sent = None

    def end(self, status: Status, text: str = "") -> None:
        """End the call, after what was written."""
        if self.over:
            return
        block = header_blocks.trailers(status, text)
        if self._stream.head_sent:
            self._connection.end(self._stream, block)
        else:
            self._connection.send_headers(self._stream, header_blocks.RESPONSE + block, end=True)
        self._finish()

    def fail(self, status: Status, text: str) -> None:
        """End the call from outside of its handler, which is cancelled."""
        task = self._task
        self.end(status, text)
        if task is not None:
            task.cancel()

    # --- Receiver --------------------------------------------------------------------------------------------------

    def on_data(self, data: bytes) -> None:
        """Find the messages."""
        if self.over:
            return
        on_message = self._on_message
        if on_message is None:
            self._partial += data
            return
        size = len(data)
        self._connection.consumed(self._stream, size)
        if not self._partial and size >= _PREFIX_BYTES and data[0] == 0 and _size_at(data, 0) == size - _PREFIX_BYTES:
            on_message(data[_PREFIX_BYTES:])  # what a worker sends: a message, in a frame of its own
            return
        self._partial += data
        self._connection.partial_bytes += size
        self._parse()

    def _parse(self) -> None:
        on_message = self._on_message
        at = 0
        while on_message is not None and len(self._partial) - at >= _PREFIX_BYTES:
            if self._partial[at] != 0:
                self.fail(Status.UNIMPLEMENTED, "messages must not be compressed")
                return
            size = _size_at(self._partial, at)
            if size > _MAX_MESSAGE:
                self.fail(
                    Status.RESOURCE_EXHAUSTED, f"message of {size} bytes, where at most {_MAX_MESSAGE} are allowed"
                )
                return
            end = at + _PREFIX_BYTES + size
            if len(self._partial) < end:
                break
            message = bytes(self._partial[at + _PREFIX_BYTES : end])
            at = end
            on_message(message)
            if self.over:
                return
        del self._partial[:at]
        self._connection.partial_bytes -= at
        if self._connection.partial_bytes > _PARTIAL:
            self.fail(Status.RESOURCE_EXHAUSTED, "too many messages of this connection are incomplete")

    def on_end(self) -> None:
        """The peer has half-closed."""
        if self._on_closed is not None and not self.over:
            self._on_closed()

    def on_reset(self) -> None:
        """The peer has cancelled the call, or its connection is lost."""
        task = self._task
        self._finish()
        if task is not None:
            task.cancel()

    def on_sent(self) -> None:
        """The peer reads."""
        if self._sent is not None and not self._sent.done():
            self._sent.set_result(None)

    def _finish(self) -> None:
        if self.over:
            return
        self.over = True
        if self._on_message is not None:
            self._connection.partial_bytes -= len(self._partial)
        self._partial.clear()
        self._fields = []
        # No cycle of references keeps the handler's objects after its end.
        self._task = self._on_message = self._on_closed = None
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        self._on_over(self)


def _size_at(data: bytes | bytearray, at: int) -> int:
    """The size in the prefix at `at`."""
    return data[at + 1] << 24 | data[at + 2] << 16 | data[at + 3] << 8 | data[at + 4]
