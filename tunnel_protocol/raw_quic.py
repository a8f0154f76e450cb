"""The raw-quic framing: a request stream is a headers message, body messages and FIN, in each direction.

Method and path travel as the first two header entries (`x-method`, `x-path`), the status as the entry `x-status`. Trailers
end a body and are dropped. See docs/protocol.md, "Request streams".
"""

from tunnel_protocol import head as names
from tunnel_protocol.capnp import Body, Headers, Trailers, encode_body, encode_headers
from tunnel_protocol.errors import ProtocolError
from tunnel_protocol.framing import Framing, RequestSink, ResponseSink, RouterExchange, WorkerExchange
from tunnel_protocol.head import HeaderList, RequestHead, ResponseHead
from tunnel_protocol.message_reader import MessageReader

_BAD_GATEWAY = 502


class _Half:
    """What both roles share: message order, and the end of the body by FIN or trailers."""

    __slots__ = ("_ended", "_reader", "_started")

    def __init__(self) -> None:
        self._reader = MessageReader(self._on_message)
        self._started = False
        self._ended = False

    def receive(self, data: bytes, fin: bool) -> None:
        """Feed received stream bytes. Raises `ProtocolError`; what was complete before the fault has reached the sink."""
        if self._ended:
            return
        if data:
            self._reader.feed(data)
        if fin and not self._ended:
            self._reader.finish()
            if not self._started:
                raise ProtocolError("expected header message, got none")
            self._ended = True
            self._on_end()

    def encode_body(self, data: bytes) -> bytes:
        """One body message; nothing for an empty piece."""
        return encode_body(data) if data else b""

    def encode_end(self) -> bytes:
        """FIN alone ends a body."""
        return b""

    def _on_message(self, message: Headers | Body | Trailers) -> None:
        if self._ended:
            return  # whatever follows trailers is nobody's business
        if type(message) is Body:
            if not self._started:
                raise ProtocolError("expected header message, got body")
            if message.content:
                self._on_body(message.content)
        elif type(message) is Headers:
            if self._started:
                raise ProtocolError("expected body message, got header")
            self._started = True
            self._on_headers(message.entries)
        else:
            if not self._started:
                raise ProtocolError("expected header message, got trailer")
            self._ended = True
            self._on_end()

    def _on_headers(self, entries: HeaderList) -> None:
        raise NotImplementedError

    def _on_body(self, data: bytes) -> None:
        raise NotImplementedError

    def _on_end(self) -> None:
        raise NotImplementedError


class RawQuicRouterExchange(_Half):
    """The router's half of one request stream."""

    __slots__ = ("_on_body", "_on_end", "_sink")

    def __init__(self, sink: ResponseSink) -> None:
        super().__init__()
        self._sink = sink
        self._on_body = sink.on_body  # type: ignore[method-assign]  # no call in between on the path of a chunk
        self._on_end = sink.on_end  # type: ignore[method-assign]

    def encode_head(self, head: RequestHead) -> bytes:
        """Method and path first, so that a caller's entries of these names come second and lose."""
        return encode_headers([(names.METHOD, head.method), (names.PATH, head.path), *head.headers])

    def _on_headers(self, entries: HeaderList) -> None:
        status = _BAD_GATEWAY
        for name, value in entries:
            if name == names.STATUS:
                status = _status(value)
                break
        self._sink.on_head(ResponseHead(status, [entry for entry in entries if entry[0] != names.STATUS]))


class RawQuicWorkerExchange(_Half):
    """The worker's half of one request stream."""

    __slots__ = ("_on_body", "_on_end", "_sink")

    def __init__(self, sink: RequestSink) -> None:
        super().__init__()
        self._sink = sink
        self._on_body = sink.on_body  # type: ignore[method-assign]
        self._on_end = sink.on_end  # type: ignore[method-assign]

    def encode_head(self, head: ResponseHead) -> bytes:
        """The headers with exactly one `x-status`, last."""
        entries = [entry for entry in head.headers if entry[0] != names.STATUS]
        entries.append((names.STATUS, b"%d" % head.status))
        return encode_headers(entries)

    def _on_headers(self, entries: HeaderList) -> None:
        method = path = None
        headers: HeaderList = []
        for entry in entries:
            if entry[0] == names.METHOD:
                method = entry[1] if method is None else method
            elif entry[0] == names.PATH:
                path = entry[1] if path is None else path
            else:
                headers.append(entry)
        if not method or not path:
            raise ProtocolError("request head without x-method or x-path")
        self._sink.on_head(RequestHead(method, path, headers))


class RawQuicFraming:
    """The default tunnel protocol."""

    name = "raw-quic"

    def router_exchange(self, sink: ResponseSink) -> RouterExchange:
        """A fresh router half that reports to `sink`."""
        return RawQuicRouterExchange(sink)

    def worker_exchange(self, sink: RequestSink) -> WorkerExchange:
        """A fresh worker half that reports to `sink`."""
        return RawQuicWorkerExchange(sink)


RAW_QUIC: Framing = RawQuicFraming()


def _status(value: bytes) -> int:
    """The status of a response head; 502 for what is no status. Raises `ProtocolError` for an interim one."""
    digits = value[1:] if value[:1] == b"+" else value
    if not digits.isdigit() or len(digits.lstrip(b"0")) > 3:
        return _BAD_GATEWAY
    status = int(digits)
    if 100 <= status < 200:
        raise ProtocolError(f"interim status {status} as the final answer")
    return status if 200 <= status <= 999 else _BAD_GATEWAY
