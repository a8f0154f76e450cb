"""The raw-quic framing: a request stream is a headers message, body messages and FIN, in each direction.

Method and path travel as the first two header entries (`x-method`, `x-path`), the status as the entry `x-status`. Trailers
end a body and are dropped. See docs/protocol.md, "Request streams".
"""

import re
from abc import abstractmethod
from typing import Final

from tunnel_protocol.capnp import Body, Headers, Trailers, encode_body, encode_headers
from tunnel_protocol.capnp_layouts import around_body
from tunnel_protocol.errors import ProtocolError
from tunnel_protocol.framing import Framing, RequestSink, ResponseSink, RouterExchange, WorkerExchange
from tunnel_protocol.head import METHOD, PATH, STATUS, HeaderList, RequestHead, ResponseHead
from tunnel_protocol.message_reader import MessageReader

_BAD_GATEWAY: Final = 502
_STATUS_NAME_BYTES: Final = len(STATUS)
_METHOD: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+\Z").match
_PATH: Final = re.compile(rb"[!-~]+\Z").match


class _Half(MessageReader):
    """The part that both roles share: message order, and the end of the body by FIN or trailers."""

    __slots__ = ("_sink", "_started")

    def __init__(self, sink: RequestSink | ResponseSink) -> None:
        super().__init__()
        self._sink = sink
        self._started = False

    def receive(self, data: bytes, fin: bool) -> None:
        """Process received bytes. Raises `ProtocolError`; complete messages before the error have reached the sink."""
        if self._closed:
            return
        try:
            self.feed(data)
            if fin:
                self._end_of_stream()
        except ProtocolError:
            self.close()
            raise

    def encode_body(self, data: bytes) -> bytes:
        """Encode one body message; empty for an empty piece."""
        return encode_body(data) if data else b""

    def around_body(self, size: int) -> tuple[bytes, bytes]:
        """What stands before and behind the content in one body message."""
        return around_body(size)

    def encode_end(self) -> bytes:
        """Nothing: FIN ends a body."""
        return b""

    def on_message(self, message: Headers | Body | Trailers) -> None:
        """Process one message of the peer. Raises `ProtocolError` if it is out of order."""
        if type(message) is Headers:
            if self._started:
                raise ProtocolError("expected body message, got header")
            self._started = True
            self.on_body = self._sink.on_body
            self._on_entries(message.entries)
        elif not self._started:
            raise ProtocolError(f"expected header message, got {'body' if type(message) is Body else 'trailer'}")
        elif type(message) is Body:
            if message.content:
                self._sink.on_body(message.content)
        else:
            self._end()  # bytes after trailers are ignored

    def _end_of_stream(self) -> None:
        if self._closed:
            return
        self.finish()
        if not self._started:
            raise ProtocolError("expected header message, got none")
        self._end()

    def _end(self) -> None:
        self.close()
        self._sink.on_end()

    @abstractmethod
    def _on_entries(self, entries: HeaderList) -> None:
        """Process the entries of the head. Raises `ProtocolError` if they are not a valid head."""


class RawQuicRouterExchange(_Half):
    """The router's side of one request stream."""

    __slots__ = ("_on_head",)

    def __init__(self, sink: ResponseSink) -> None:
        super().__init__(sink)
        self._on_head = sink.on_head

    def encode_head(self, head: RequestHead) -> bytes:
        """Encode the head, method and path first: workers use the first entry of a name, so a client cannot override them."""
        entries: HeaderList = [(METHOD, head.method), (PATH, head.path)]
        entries += head.headers
        return encode_headers(entries)

    def _on_entries(self, entries: HeaderList) -> None:
        status = 0
        headers: HeaderList = []
        for entry in entries:
            name = entry[0]
            if len(name) != _STATUS_NAME_BYTES or name != STATUS:
                headers.append(entry)
            elif not status:
                status = _status(entry[1])
        self._on_head(ResponseHead(status or _BAD_GATEWAY, headers))


class RawQuicWorkerExchange(_Half):
    """The worker's side of one request stream."""

    __slots__ = ("_on_head",)

    def __init__(self, sink: RequestSink) -> None:
        super().__init__(sink)
        self._on_head = sink.on_head

    def encode_head(self, head: ResponseHead) -> bytes:
        """Encode the headers, then exactly one `x-status`."""
        entries = [entry for entry in head.headers if entry[0] != STATUS]
        entries.append((STATUS, b"%d" % head.status))
        return encode_headers(entries)

    def _on_entries(self, entries: HeaderList) -> None:
        method = path = None
        headers: HeaderList = []
        for entry in entries:
            if entry[0] == METHOD:
                method = entry[1] if method is None else method
            elif entry[0] == PATH:
                path = entry[1] if path is None else path
            else:
                headers.append(entry)
        if method is None or path is None or not _METHOD(method) or not _PATH(path):
            raise ProtocolError("request head without a usable x-method and x-path")
        self._on_head(RequestHead(method, path, headers))


class RawQuicFraming:
    """The default tunnel protocol."""

    name = "raw-quic"

    def router_exchange(self, sink: ResponseSink) -> RouterExchange:
        """A new `RouterExchange` that reports to `sink`."""
        return RawQuicRouterExchange(sink)

    def worker_exchange(self, sink: RequestSink) -> WorkerExchange:
        """A new `WorkerExchange` that reports to `sink`."""
        return RawQuicWorkerExchange(sink)


RAW_QUIC: Final[Framing] = RawQuicFraming()


def _status(value: bytes) -> int:
    """The status of a response head; 502 if it is invalid. Raises `ProtocolError` for an interim status (1xx)."""
    if value == b"200":
        return 200
    digits = value[1:] if value[:1] == b"+" else value
    if not digits.isdigit() or len(digits.lstrip(b"0")) > 3:
        return _BAD_GATEWAY
    status = int(digits)
    if 100 <= status < 200:
        raise ProtocolError(f"interim status {status} as the final answer")
    return status if 200 <= status <= 999 else _BAD_GATEWAY
