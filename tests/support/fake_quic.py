"""A scripted QUIC connection with its streams, and a framing of one line per message, for tests of exchanges and slots."""

from collections.abc import Callable
from typing import Any

from router.ports.tunnels import ExchangeSink, TunnelError
from tunnel_protocol.errors import ConnectionClosedError, ProtocolError, StreamClosedError
from tunnel_protocol.head import RequestHead, ResponseHead
from tunnel_protocol.quic.stream_interface import Stream

HEAD = RequestHead(b"POST", b"/v1/chat/completions", [(b"x-model", b"m")])


class LineFraming:
    """`H<status>`, `B<data>`, `T` (trailers: the end before FIN), one per line; anything else breaks the protocol."""

    name = "lines"

    def router_exchange(self, sink: Any) -> "LineExchange":
        return LineExchange(sink)


class LineExchange:
    def __init__(self, sink: Any) -> None:
        self._sink = sink
        self._rest = b""
        self._ended = False

    def encode_head(self, head: RequestHead) -> bytes:
        if any(max(value, default=0) > 126 for _, value in head.headers):
            raise ProtocolError("non-ASCII header value for 'x'")
        return b"H%s %s\n" % (head.method, head.path)

    def encode_body(self, data: bytes) -> bytes:
        return b"B%s\n" % data

    def around_body(self, size: int) -> tuple[bytes, bytes]:
        return b"B", b"\n"

    def encode_end(self) -> bytes:
        return b""

    def receive(self, data: bytes, fin: bool) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            if line.startswith(b"H"):
                self._sink.on_head(ResponseHead(int(line[1:]), []))
            elif line.startswith(b"B"):
                self._sink.on_body(line[1:])
            elif line == b"T":
                self._ended = True
                self._sink.on_end()
                return
            else:
                raise ProtocolError("unknown line")
        if fin:
            if self._rest:
                raise ProtocolError("stream ended inside a message")
            self._sink.on_end()


class FakeStream(Stream):
    """Records what is done to it; the test plays the peer through `handler`."""

    def __init__(self, handler: Any, stream_id: int = 1) -> None:
        super().__init__(stream_id)
        self.handler = handler
        self.sent = b""
        self.fin = False
        self.calls: list[str] = []
        self.writable = True
        self.acked = False
        self.sent_callbacks: list[Callable[[], None]] = []

    def write(self, data: bytes | bytearray, fin: bool = False) -> bool:
        if self.fin or "reset 0" in self.calls:
            raise StreamClosedError
        self.sent += data
        self.fin = fin
        return self.writable

    def reset(self, error_code: int = 0) -> None:
        self.calls.append(f"reset {error_code}")

    def stop(self, error_code: int = 0) -> None:
        self.calls.append(f"stop {error_code}")

    def pause_reading(self) -> None:
        self.calls.append("pause")

    def resume_reading(self) -> None:
        self.calls.append("resume")

    def unsent_bytes(self) -> int:
        return 0

    def acknowledged(self) -> bool:
        return self.acked

    def when_sent(self, callback: Callable[[], None]) -> None:
        self.sent_callbacks.append(callback)


class FakeConnection:
    def __init__(self, free_streams: int = 100) -> None:
        self.closed = False
        self.free_streams = free_streams
        self.streams: list[FakeStream] = []
        self.closes: list[tuple[int, str]] = []
        self.last_received_at = 0.0
        self.pings = 0
        self.before_return: Callable[[FakeStream], None] = lambda _: None

    async def open_stream(self, handler: Any) -> FakeStream:
        if self.closed:
            raise ConnectionClosedError(0, "", by_peer=True)
        stream = FakeStream(handler, 4 * len(self.streams) + 1)
        self.streams.append(stream)
        self.before_return(stream)
        return stream

    def ping(self) -> None:
        self.pings += 1

    def close(self, error_code: int = 0, reason: str = "") -> None:
        self.closed = True
        self.closes.append((error_code, reason))


class RecordingSink(ExchangeSink):
    """Writes down what an exchange tells; `react` lets a test act from inside a callback."""

    def __init__(self) -> None:
        self.events: list[object] = []
        self.react: Callable[[object], None] = lambda _: None

    def _note(self, event: object) -> None:
        self.events.append(event)
        self.react(event)

    def on_head(self, head: ResponseHead) -> None:
        self._note(head.status)

    def on_body(self, data: bytes) -> None:
        self._note(data)

    def on_end(self) -> None:
        self._note("end")

    def on_failed(self, error: TunnelError) -> None:
        self.error = error
        self._note("failed")

    def on_upload_writable(self) -> None:
        self._note("writable")

    def on_upload_stopped(self) -> None:
        self._note("stopped")
