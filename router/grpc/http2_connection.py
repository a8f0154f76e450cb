"""The server's side of one HTTP/2 connection: bytes in, bytes out, and calls of `Receiver` between. Sans-I/O.

It does what gRPC needs, in the order of RFC 9113 sections 5 and 6, with a bound on everything a peer may cause. What costs most
is a message: it is found in the received bytes, and its answer is written, without an object between.
"""

from collections.abc import Callable
from typing import Final

from router.grpc import frames
from router.grpc.frames import DEFAULT_WINDOW, MAX_FRAME_BYTES, MAX_WINDOW, ErrorCode, Flood, FloodError, Http2Error
from router.grpc.header_decoder import HeaderDecoder, Headers, size_of
from router.grpc.stream import Http2Stream
from tunnel_protocol.control.grpc_options import CONNECTION_STREAMS, METADATA
from tunnel_protocol.limit import Limit

CONNECTION_WINDOW: Final = Limit("grpc.unread", bytes=4 << 20)
"""Bytes of bodies on one connection that no call has read; the peer may send no more than that."""
RESETS: Final = Limit("grpc.resets", pieces=4_096)
"""Calls that a peer may open within ten seconds and reset, or have reset (CVE-2023-44487, CVE-2025-8671), before they have said anything."""
CONTROL_FRAMES: Final = Limit("grpc.control_frames", pieces=1_000)
"""Frames that carry nothing of a call: PING, SETTINGS, WINDOW_UPDATE, PRIORITY, empty DATA, unknown types (CVE-2019-9512 and
others). Ten are allowed for each frame that a call sends, and 100 a second; beyond that they are counted."""
OPEN_HEADS: Final = Limit("grpc.open_heads", bytes=32 << 20)
"""Decoded heads of all open calls of a connection; a few bytes of a block may stand for a field of 4 KiB."""
HEADER_BLOCK: Final = Limit("grpc.header_block", bytes=256 << 10, pieces=64)
"""Encoded and decoded size of one block of headers, and the frames that it may come in."""

_WINDOW: Final = CONNECTION_WINDOW.bytes or 0
_RESETS: Final = RESETS.pieces or 0
_RESETS_S: Final = 10.0
_CONTROL_FRAMES = CONTROL_FRAMES.pieces or 0
_CONTROL_FRAMES_PER_S: Final = 100
_CONTROL_FRAMES_PER_SENT: Final = 10
_WORK_OF_BLOCK: Final = 16
"""What a block of headers counts: it begins a call, which costs as much as that many other frames."""
_UNBOUNDED: Final = 1 << 62
_HEADS: Final = OPEN_HEADS.bytes or 0
_BLOCK_BYTES: Final = HEADER_BLOCK.bytes or 0
_BLOCK_FRAMES: Final = HEADER_BLOCK.pieces or 0
_OUTPUT: Final = 128 << 10
"""Bytes of bodies that are given to the socket at once. The rest waits in its streams, so that a fast caller is no peer that does not
read, and its handler leaves the event loop to others."""
_STREAMS: Final = CONNECTION_STREAMS.pieces or 0
_PROTOCOL_ERROR: Final = ErrorCode.PROTOCOL_ERROR
_NO_BLOCK: Final = 0


class Http2Connection:
    """Feed it with `receive`; `take_output` has what is to be written after each call of it and each `on_output`."""

    def __init__(self, on_request: Callable[[Http2Stream, Headers], None], on_output: Callable[[], None]) -> None:
        """`on_request` gets the head of each new stream, which may end it (`received_end`), and sets the stream's `receiver`.

        `on_output`: there is something to write.
        """
        self._on_request = on_request
        self._on_output = on_output
        self._out: list[bytes] = []
        self._out_bodies = 0
        self._held_back = False
        """Whether a body waits for what is to be written before it."""
        self._receiving = False
        self._partial = b""
        self._preface_due = len(frames.PREFACE)
        self.settled = False
        """Whether the peer's preface is complete, with its SETTINGS."""
        self.streams: dict[int, Http2Stream] = {}
        self._blocked: dict[int, Http2Stream] = {}
        self._last_stream_id = 0
        self.going_away = False
        """Whether new streams are ignored."""
        self._writable = True
        self._send_window = DEFAULT_WINDOW
        self._peer_window = DEFAULT_WINDOW
        self._receive_window = _WINDOW
        self._ungranted = 0
        self.partial_bytes = 0
        """Parts of messages that the calls hold; they count them."""
        self._head_bytes = 0
        self._decoder = HeaderDecoder(_BLOCK_BYTES)
        self._block = bytearray()
        self._block_stream = _NO_BLOCK
        self._block_frames = 0
        self._block_ends_stream = False
        self._resets = 0
        self._resets_since = 0.0
        self._control_frames = 0.0
        self._control_frames_at = 0.0
        self._work = 0
        self._now = 0.0
        self._emit(
            frames.settings({frames.MAX_CONCURRENT_STREAMS: _STREAMS, frames.MAX_HEADER_LIST_SIZE: METADATA.bytes or 0})
        )
        self._emit(frames.window_update(0, _WINDOW - DEFAULT_WINDOW))

    def take_output(self) -> bytes:
        """What is to be written now; `on_output` is called if there is more for later."""
        out = self._out
        if not out:
            return b""
        data = out[0] if len(out) == 1 else b"".join(out)
        self._out = []
        self._out_bodies = 0
        if self._held_back:
            self._held_back = False
            self._send_blocked()
        return data

    # --- Input -----------------------------------------------------------------------------------------------------

    def receive(self, data: bytes, now: float, most_work: int = _UNBOUNDED) -> bool:
        """Handle received bytes; `now` is monotonic seconds. Whether some are left, for a call without data, because frames of
        `most_work` were handled: a frame is 1, one that begins a call 16.

        Raises `Http2Error`: the connection then ends by `fail`.
        """
        self._now = now
        self._work = 0
        self._receiving = True
        try:
            return self._receive(data, most_work)
        finally:
            self._receiving = False

    def _receive(self, data: bytes, most_work: int) -> bool:
        if self._partial:
            data = self._partial + data
            self._partial = b""
        at = 0
        size = len(data)
        if self._preface_due:
            at = min(self._preface_due, size)
            done = len(frames.PREFACE) - self._preface_due
            if data[:at] != frames.PREFACE[done : done + at]:
                raise Http2Error(_PROTOCOL_ERROR, "no HTTP/2 preface")
            self._preface_due -= at
        while size - at >= 9:
            length = data[at] << 16 | data[at + 1] << 8 | data[at + 2]
            if length > MAX_FRAME_BYTES:
                raise Http2Error(ErrorCode.FRAME_SIZE_ERROR, "a frame is too large")
            end = at + 9 + length
            if end > size:
                break
            stream_id = (data[at + 5] & 127) << 24 | data[at + 6] << 16 | data[at + 7] << 8 | data[at + 8]
            self._frame(data[at + 3], data[at + 4], stream_id, data[at + 9 : end])
            at = end
            self._work += 1
            if self._work >= most_work:
                break
        if at < size:
            self._partial = data[at:]
            return self._work >= most_work
        return False

    def _frame(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        self._check_order(kind, stream_id)
        if kind == frames.DATA:
            if not payload and not flags & frames.END_STREAM:
                self._count_control_frame()
            self._on_data(flags, stream_id, payload)
        elif kind == frames.HEADERS:
            self._on_headers(flags, stream_id, payload)
        elif kind == frames.CONTINUATION:
            self._on_continuation(flags, payload)
        elif kind == frames.RST_STREAM:
            self._on_reset(stream_id, payload)
        else:
            self._count_control_frame()
            self._on_control_frame(kind, flags, stream_id, payload)

    def _count_control_frame(self) -> None:
        used = self._control_frames - (self._now - self._control_frames_at) * _CONTROL_FRAMES_PER_S
        self._control_frames_at = self._now
        self._control_frames = max(0.0, used) + 1.0
        if self._control_frames > _CONTROL_FRAMES:
            raise FloodError(Flood.CONTROL_FRAMES, "too many frames that carry nothing of a call")

    def _allow_control_frames(self) -> None:
        """The peer may answer what a call sends with WINDOW_UPDATE and PING."""
        if self._control_frames > 0:
            self._control_frames -= _CONTROL_FRAMES_PER_SENT

    def _on_control_frame(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        if kind == frames.WINDOW_UPDATE:
            self._on_window_update(stream_id, payload)
        elif kind == frames.SETTINGS:
            self._on_settings(flags, stream_id, payload)
        elif kind == frames.PING:
            self._on_ping(flags, stream_id, payload)
        elif kind == frames.PRIORITY:
            self._check_size(len(payload) == 5)
        elif kind == frames.GOAWAY:
            self._check_size(len(payload) >= 8)  # it opens no more streams, and its open ones go on
        elif kind == frames.PUSH_PROMISE:
            raise Http2Error(_PROTOCOL_ERROR, "a client cannot push")
        # Frames of other types are ignored (section 5.5).

    def _check_order(self, kind: int, stream_id: int) -> None:
        if self._block_stream != _NO_BLOCK and (kind != frames.CONTINUATION or stream_id != self._block_stream):
            raise Http2Error(_PROTOCOL_ERROR, "a block of headers is interrupted")
        if not self.settled and kind != frames.SETTINGS:
            raise Http2Error(_PROTOCOL_ERROR, "the first frame is not SETTINGS")

    def _check_size(self, right: bool) -> None:
        if not right:
            raise Http2Error(ErrorCode.FRAME_SIZE_ERROR, "a frame has the wrong size for its type")

    def _on_data(self, flags: int, stream_id: int, payload: bytes) -> None:
        size = len(payload)
        self._receive_window -= size
        if self._receive_window < 0:
            raise Http2Error(ErrorCode.FLOW_CONTROL_ERROR, "more than the connection's window")
        stream = self.streams.get(stream_id)
        if stream is None:
            self._check_not_idle(stream_id)
            self._grant(size)
            return
        if stream.received_end:
            self._grant(size)
            self.reset(stream, ErrorCode.STREAM_CLOSED)
            stream.receiver.on_reset()
            return
        stream.receive_window -= size
        stream.unconsumed += size
        if stream.receive_window < 0:
            raise Http2Error(ErrorCode.FLOW_CONTROL_ERROR, "more than the stream's window")
        data = frames.unpadded(flags, payload)
        if len(data) < size:
            self.consumed(stream, size - len(data))
        if flags & frames.END_STREAM:
            stream.received_end = True
        if data:
            stream.received_data = True
            stream.receiver.on_data(data)
        if stream.received_end:
            stream.receiver.on_end()

    def _check_not_idle(self, stream_id: int) -> None:
        if stream_id == 0 or stream_id & 1 == 0 or (stream_id > self._last_stream_id and not self.going_away):
            raise Http2Error(_PROTOCOL_ERROR, "a frame of a stream that was not opened")

    def _on_window_update(self, stream_id: int, payload: bytes) -> None:
        self._check_size(len(payload) == 4)
        size = (payload[0] & 127) << 24 | payload[1] << 16 | payload[2] << 8 | payload[3]
        if stream_id == 0:
            self._send_window += size
            if size == 0 or self._send_window > MAX_WINDOW:
                raise Http2Error(ErrorCode.FLOW_CONTROL_ERROR if size else _PROTOCOL_ERROR, "invalid window update")
            self._send_blocked()
            return
        stream = self.streams.get(stream_id)
        if stream is None:
            self._check_not_idle(stream_id)
            return
        stream.send_window += size
        if size == 0 or stream.send_window > MAX_WINDOW:
            self.reset(stream, ErrorCode.FLOW_CONTROL_ERROR if size else _PROTOCOL_ERROR)
            stream.receiver.on_reset()
        elif stream.unsent:
            self._pump(stream)

    def _on_headers(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id & 1 == 0:
            raise Http2Error(_PROTOCOL_ERROR, "a client opens odd streams")
        block = frames.unpadded(flags, payload)
        if flags & frames.WITH_PRIORITY:
            self._check_size(len(block) >= 5)
            block = block[5:]
        self._block_ends_stream = flags & frames.END_STREAM != 0
        if flags & frames.END_HEADERS:
            self._on_block(stream_id, block)
        else:
            self._block_stream = stream_id
            self._block = bytearray(block)
            self._block_frames = 1

    def _on_continuation(self, flags: int, payload: bytes) -> None:
        if self._block_stream == _NO_BLOCK:
            raise Http2Error(_PROTOCOL_ERROR, "a block of headers is continued that was not begun")
        self._block += payload
        self._block_frames += 1
        if len(self._block) > _BLOCK_BYTES or self._block_frames > _BLOCK_FRAMES:
            raise FloodError(Flood.HEADER_BLOCK, "a block of headers is too large")
        if flags & frames.END_HEADERS:
            stream_id, self._block_stream = self._block_stream, _NO_BLOCK
            block, self._block = bytes(self._block), bytearray()
            self._on_block(stream_id, block)

    def _on_block(self, stream_id: int, block: bytes) -> None:
        self._work += _WORK_OF_BLOCK - 1
        headers = self._decoder.decode(block)
        stream = self.streams.get(stream_id)
        if stream is not None:
            self._on_trailers(stream)
            return
        if stream_id <= self._last_stream_id:
            return  # trailers of a stream that was ended here
        if self.going_away:
            return  # the peer knows from GOAWAY that it was not handled
        self._last_stream_id = stream_id
        size = size_of(headers)
        if len(self.streams) >= _STREAMS or self._head_bytes + size > _HEADS:
            self._emit(frames.reset(stream_id, ErrorCode.REFUSED_STREAM))
            return
        stream = Http2Stream(stream_id, self._peer_window)
        stream.received_end = self._block_ends_stream
        stream.head_bytes = size
        self._head_bytes += size
        self.streams[stream_id] = stream
        self._on_request(stream, headers)

    def _on_trailers(self, stream: Http2Stream) -> None:
        if stream.received_end or not self._block_ends_stream:
            self.reset(stream, ErrorCode.STREAM_CLOSED if stream.received_end else _PROTOCOL_ERROR)
            stream.receiver.on_reset()
            return
        stream.received_end = True
        stream.receiver.on_end()

    def _on_reset(self, stream_id: int, payload: bytes) -> None:
        self._check_size(len(payload) == 4)
        self._check_not_idle(stream_id)
        stream = self.streams.get(stream_id)
        if stream is None or not stream.received_data:
            # A call that has said something is no part of a flood: a proxy carries the calls of many workers, which may all leave.
            self._count_reset()
        if stream is not None:
            self._forget(stream)
            stream.receiver.on_reset()

    def _count_reset(self) -> None:
        if self._now - self._resets_since > _RESETS_S:
            self._resets_since, self._resets = self._now, 0
        self._resets += 1
        if self._resets > _RESETS:
            raise FloodError(Flood.RESETS, "too many streams are reset")

    def _on_settings(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id:
            raise Http2Error(_PROTOCOL_ERROR, "SETTINGS on a stream")
        if flags & frames.ACK:
            self._check_size(not payload)
            if not self.settled:
                raise Http2Error(_PROTOCOL_ERROR, "the first frame acknowledges SETTINGS")
            return
        self._check_size(len(payload) % 6 == 0)
        self.settled = True
        for at in range(0, len(payload), 6):
            key = payload[at] << 8 | payload[at + 1]
            value = int.from_bytes(payload[at + 2 : at + 6], "big")
            if key == frames.INITIAL_WINDOW_SIZE:
                self._set_peer_window(value)
            elif key == frames.MAX_FRAME_SIZE and not MAX_FRAME_BYTES <= value < 1 << 24:
                raise Http2Error(_PROTOCOL_ERROR, "invalid SETTINGS_MAX_FRAME_SIZE")
        self._emit(frames.frame(frames.SETTINGS, frames.ACK, 0, b""))
        self._send_blocked()

    def _set_peer_window(self, value: int) -> None:
        if value > MAX_WINDOW:
            raise Http2Error(ErrorCode.FLOW_CONTROL_ERROR, "invalid SETTINGS_INITIAL_WINDOW_SIZE")
        change = value - self._peer_window
        self._peer_window = value
        for stream in self.streams.values():
            stream.send_window += change
            if stream.send_window > MAX_WINDOW:
                raise Http2Error(ErrorCode.FLOW_CONTROL_ERROR, "a window is too large")

    def _on_ping(self, flags: int, stream_id: int, payload: bytes) -> None:
        self._check_size(len(payload) == 8)
        if stream_id:
            raise Http2Error(_PROTOCOL_ERROR, "PING on a stream")
        if not flags & frames.ACK:
            self._emit(frames.frame(frames.PING, frames.ACK, 0, payload))

    # --- Credit ----------------------------------------------------------------------------------------------------

    def consumed(self, stream: Http2Stream, size: int) -> None:
        """So many received bytes have been taken: the peer may send as many again, of which it is told in large steps."""
        stream.unconsumed -= size
        self._grant(size)
        if stream.received_end or stream.over:
            return
        stream.ungranted += size
        if stream.ungranted >= DEFAULT_WINDOW // 2:
            self._emit(frames.window_update(stream.id, stream.ungranted))
            stream.receive_window += stream.ungranted
            stream.ungranted = 0

    def _grant(self, size: int) -> None:
        self._ungranted += size
        if self._ungranted >= _WINDOW // 2:
            self._emit(frames.window_update(0, self._ungranted))
            self._receive_window += self._ungranted
            self._ungranted = 0

    # --- Output ----------------------------------------------------------------------------------------------------

    def send_headers(self, stream: Http2Stream, block: bytes, *, end: bool = False) -> None:
        """Send the head of the response, and with `end` nothing more; only while the stream is open."""
        stream.head_sent = True
        self._allow_control_frames()
        self._emit(
            frames.frame(frames.HEADERS, frames.END_HEADERS | (frames.END_STREAM if end else 0), stream.id, block)
        )
        if end:
            self._sent_end(stream)

    def send(self, stream: Http2Stream, data: bytes) -> None:
        """Send bytes of the body, or have them wait in `stream.unsent`."""
        if stream.over:
            return
        size = len(data)
        if (
            self._writable
            and not stream.unsent
            and size <= stream.send_window
            and size <= self._send_window
            and size <= MAX_FRAME_BYTES
            and self._out_bodies < _OUTPUT
        ):
            stream.send_window -= size
            self._send_window -= size
            self._out_bodies += size
            self._allow_control_frames()
            self._emit(frames.frame(frames.DATA, 0, stream.id, data))
        else:
            stream.unsent += data
            self._pump(stream)

    def end(self, stream: Http2Stream, block: bytes) -> None:
        """End the stream with trailers, after what waits; only while the stream is open."""
        stream.trailers = block
        if not stream.unsent:
            self._send_trailers(stream)

    def _pump(self, stream: Http2Stream) -> None:
        unsent = stream.unsent
        while unsent and self._writable:
            if self._out_bodies >= _OUTPUT:
                self._held_back = True
                break
            step = min(len(unsent), stream.send_window, self._send_window, MAX_FRAME_BYTES)
            if step <= 0:
                break
            stream.send_window -= step
            self._send_window -= step
            self._out_bodies += step
            self._allow_control_frames()
            self._emit(frames.frame(frames.DATA, 0, stream.id, bytes(unsent[:step])))
            del unsent[:step]
        stream.receiver.on_sent()
        if unsent:
            self._blocked[stream.id] = stream
            return
        self._blocked.pop(stream.id, None)
        if stream.trailers is not None:
            self._send_trailers(stream)

    def _send_trailers(self, stream: Http2Stream) -> None:
        block = stream.trailers or b""
        self._emit(frames.frame(frames.HEADERS, frames.END_HEADERS | frames.END_STREAM, stream.id, block))
        self._sent_end(stream)

    def _sent_end(self, stream: Http2Stream) -> None:
        if not stream.received_end:
            # The client need not send the rest (RFC 9113 section 8.1).
            self._emit(frames.reset(stream.id, ErrorCode.NO_ERROR))
        self._forget(stream)

    def _send_blocked(self) -> None:
        for stream in list(self._blocked.values()):
            self._pump(stream)

    def reset(self, stream: Http2Stream, code: ErrorCode) -> None:
        """End an open stream whose peer breaks a rule; its receiver is not told. Counts as a reset by the peer (CVE-2025-8671),
        and raises `FloodError`, with the stream still open, if there were too many.
        """
        self._count_reset()
        self._emit(frames.reset(stream.id, code))
        self._forget(stream)

    def _forget(self, stream: Http2Stream) -> None:
        stream.over = True
        stream.unsent.clear()
        del self.streams[stream.id]
        self._blocked.pop(stream.id, None)
        self._head_bytes -= stream.head_bytes
        unconsumed, stream.unconsumed = stream.unconsumed, 0
        self._grant(unconsumed)

    def pause(self) -> None:
        """The socket is full: bodies wait."""
        self._writable = False

    def resume(self) -> None:
        """The socket takes more."""
        self._writable = True
        self._send_blocked()

    def ping(self) -> None:
        """Ask for a sign of life."""
        self._emit(frames.frame(frames.PING, 0, 0, b"liveness"))

    def go_away(self) -> None:
        """Tell the peer to begin nothing more; the open streams go on."""
        if not self.going_away:
            self.going_away = True
            self._emit(frames.go_away(self._last_stream_id, ErrorCode.NO_ERROR))

    def fail(self, error: Http2Error) -> None:
        """Tell the peer why the connection ends; `lost` follows."""
        self.going_away = True
        self._emit(frames.go_away(self._last_stream_id, error.code, error.text.encode()))

    def lost(self) -> None:
        """The connection is over, and with it every stream."""
        self.going_away = True
        streams, self.streams = self.streams, {}
        self._blocked.clear()
        for stream in streams.values():
            stream.over = True
            stream.unsent.clear()
            stream.receiver.on_reset()

    def _emit(self, data: bytes) -> None:
        first = not self._out
        self._out.append(data)
        if first and not self._receiving:
            self._on_output()
