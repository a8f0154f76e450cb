"""One HTTP/2 connection over one TCP or TLS connection, in either role.

The `h2` library parses frames and keeps the protocol's state. This adds what a proxy needs: streams whose bodies wait for flow
control, pauses while the socket is full, pings that find a peer which vanished, and bounds on what a peer may cause.
"""

import asyncio
import errno
from collections.abc import Callable
from typing import Final, cast

from h2.config import H2Configuration
from h2.connection import ConnectionState, H2Connection
from h2.errors import ErrorCodes
from h2.events import (
    DataReceived,
    Event,
    RemoteSettingsChanged,
    RequestReceived,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    TrailersReceived,
    WindowUpdated,
)
from h2.exceptions import ProtocolError
from h2.settings import SettingCodes, Settings

from kubernetes_router.http2.frames import GoAwayFilter
from kubernetes_router.http2.stream import Headers, Http2Stream
from tunnel_protocol.control.grpc_options import CONNECTION_STREAMS, KEEPALIVE_MS, KEEPALIVE_TIMEOUT_MS, METADATA
from tunnel_protocol.limit import Limit

STREAM_WINDOW = Limit("kubernetes_router.stream_window", bytes=65_535)
"""Body of a stream that its receiver has not taken; the peer may send no more than that."""
RESETS = Limit("kubernetes_router.resets", pieces=4_096)
"""Streams that a peer may reset within ten seconds (CVE-2023-44487)."""
UNSENT_FRAMES = Limit("kubernetes_router.unsent_frames", bytes=4 << 20)
"""Bytes for the socket of a peer that does not read while it causes answers."""

_WINDOW: Final = STREAM_WINDOW.bytes or 0
_CONNECTION_WINDOW: Final = 4 << 20
_RESETS_S: Final = 10.0
_KEEPALIVE_S: Final = KEEPALIVE_MS / 1000
_KEEPALIVE_TIMEOUT_S: Final = KEEPALIVE_TIMEOUT_MS / 1000
_PING: Final = b"liveness"


class InvalidHeadersError(Exception):
    """A request head breaks a rule of HTTP/2 (RFC 9113 section 8.2)."""


class Http2Connection(asyncio.Protocol):
    """A protocol for `create_server` or `create_connection`."""

    def __init__(
        self,
        *,
        client: bool = False,
        on_request: Callable[[Http2Stream, Headers], None] | None = None,
        on_opened: Callable[["Http2Connection"], bool] = lambda _connection: True,
        on_closed: Callable[["Http2Connection"], None] = lambda _connection: None,
        on_idle: Callable[["Http2Connection"], None] = lambda _connection: None,
    ) -> None:
        """`on_request` takes the requests of a server; `on_opened` returns whether the connection may stay; `on_idle` is called
        when the last stream has ended.
        """
        self._client = client
        self._on_request = on_request
        self._on_opened = on_opened
        self._on_closed = on_closed
        self._on_idle = on_idle
        self._loop = asyncio.get_running_loop()
        # A server takes requests that the library refuses by ending the connection: without an authority. What is passed on is
        # validated by the connection that it is sent on.
        config = H2Configuration(client_side=client, header_encoding=None, validate_inbound_headers=client)
        self._h2 = H2Connection(config)
        self._filter = GoAwayFilter(preface=not client)
        self._transport: asyncio.Transport | None = None
        self._streams: dict[int, Http2Stream] = {}
        self._writable = True
        self._flush_planned = False
        self._closing = False
        self._last_received = 0.0
        self._pinged_at: float | None = None
        self._keepalive: asyncio.TimerHandle | None = None
        self._resets = 0
        self._resets_since = 0.0
        self._ungranted = 0

    @property
    def streams(self) -> int:
        """Number of open streams."""
        return len(self._streams)

    def request(self, headers: Headers) -> Http2Stream:
        """Begin a request (client). Raises `ConnectionResetError` if the peer has closed, and `InvalidHeadersError`."""
        if self._closing:
            raise ConnectionResetError(errno.ECONNRESET, "closed by the peer")
        stream = Http2Stream(self, self._h2.get_next_available_stream_id())
        try:
            stream.send_headers(headers)
        except ProtocolError as error:
            raise InvalidHeadersError(str(error)) from None
        self._streams[stream.id] = stream
        return stream

    def go_away(self) -> None:
        """Tell the peer to begin nothing more, and close when what was written has been sent. Open streams are lost."""
        if not self._closing:
            self._closing = True
            if self._h2.state_machine.state is not ConnectionState.CLOSED:
                self._h2.close_connection()
            self._flush()
            self._lose_streams()
            if self._transport is not None:
                self._transport.close()

    def abort(self) -> None:
        """Close at once; what was written may be lost."""
        self._closing = True
        if self._transport is not None:
            self._transport.abort()

    # --- asyncio.Protocol ------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the preface and settings."""
        self._transport = cast("asyncio.Transport", transport)
        if not self._on_opened(self):
            self.abort()
            return
        initial = {
            SettingCodes.INITIAL_WINDOW_SIZE: _WINDOW,
            SettingCodes.MAX_CONCURRENT_STREAMS: CONNECTION_STREAMS.pieces or 0,
            SettingCodes.MAX_HEADER_LIST_SIZE: METADATA.bytes or 0,
            SettingCodes.ENABLE_PUSH: 0,
        }
        self._h2.local_settings = Settings(client=self._client, initial_values=initial)
        self._h2.decoder.max_header_list_size = METADATA.bytes or 0
        self._h2.initiate_connection()
        # Streams are limited one by one, so one of them cannot hold up the others.
        self._h2.increment_flow_control_window(_CONNECTION_WINDOW)
        self._last_received = self._loop.time()
        self._keepalive = self._loop.call_later(_KEEPALIVE_S, self._check_liveness)
        self._flush()

    def data_received(self, data: bytes) -> None:
        """Handle frames."""
        if self._closing:
            return
        self._last_received = self._loop.time()
        self._pinged_at = None
        try:
            for event in self._h2.receive_data(self._filter.feed(data)):
                self._handle(event)
        except ProtocolError:
            self.go_away()  # the library has queued the reason
            return
        if self._filter.error_code:
            self.abort()
        else:
            self._flush()

    def eof_received(self) -> bool:
        """The peer has closed: close too."""
        return False

    def connection_lost(self, _error: Exception | None) -> None:
        """Every stream is over."""
        self._closing = True
        if self._keepalive is not None:
            self._keepalive.cancel()
        self._lose_streams()
        self._on_closed(self)

    def pause_writing(self) -> None:
        """The socket is full: bodies wait."""
        self._writable = False

    def resume_writing(self) -> None:
        """The socket takes more."""
        self._writable = True
        self._send_bodies()

    # --- events ----------------------------------------------------------------------------------------------------

    def _handle(self, event: Event) -> None:
        if isinstance(event, DataReceived):
            self._on_data(event)
        elif isinstance(event, RequestReceived):
            stream = Http2Stream(self, event.stream_id)
            self._streams[stream.id] = stream
            if self._on_request is not None:
                self._on_request(stream, list(event.headers))
        elif isinstance(event, ResponseReceived | TrailersReceived):
            if (found := self._streams.get(event.stream_id)) is not None:
                found.handler.on_headers(list(event.headers), ended=event.stream_ended is not None)
        elif isinstance(event, StreamEnded):
            if (found := self._streams.get(event.stream_id)) is not None:
                found.received_end = True
                found.handler.on_end()
                if found.end_wanted and not found.unsent:
                    self._sent_end(found)
        elif isinstance(event, StreamReset):
            self._on_stream_reset(event)
        elif isinstance(event, WindowUpdated | RemoteSettingsChanged):
            self._send_bodies()

    def _on_data(self, event: DataReceived) -> None:
        self._ungranted += event.flow_controlled_length
        if self._ungranted >= _CONNECTION_WINDOW // 2:
            self._h2.increment_flow_control_window(self._ungranted)
            self._ungranted = 0
        stream = self._streams.get(event.stream_id)
        if stream is None:
            return
        padding = event.flow_controlled_length - len(event.data)
        if padding:
            stream.consumed(padding)
        if event.data:
            stream.handler.on_data(event.data)

    def _on_stream_reset(self, event: StreamReset) -> None:
        stream = self._streams.get(event.stream_id)
        if stream is not None:
            handler = stream.handler
            stream.finish()
            handler.on_reset(int(event.error_code))
            self._forget(stream.id)
        now = self._loop.time()
        if now - self._resets_since > _RESETS_S:
            self._resets_since, self._resets = now, 0
        self._resets += 1
        if self._resets > (RESETS.pieces or 0):
            self._h2.close_connection(ErrorCodes.ENHANCE_YOUR_CALM)
            self.go_away()

    def _forget(self, stream_id: int) -> None:
        if self._streams.pop(stream_id, None) is not None and not self._streams:
            self._on_idle(self)

    def _lose_streams(self) -> None:
        lost, self._streams = self._streams, {}
        for stream in lost.values():
            handler = stream.handler
            stream.finish()
            handler.on_reset(None)

    def _sent_end(self, stream: Http2Stream) -> None:
        """The end was sent: forget the stream if the peer has ended it too; a server's end is the end of both sides."""
        if stream.received_end:
            stream.finish()
            self._forget(stream.id)
        elif not self._client:
            stream.reset(ErrorCodes.NO_ERROR)  # the client need not send the rest (RFC 9113 section 8.1)

    # --- StreamConnection ------------------------------------------------------------------------------------------

    def send_headers(self, stream: Http2Stream, headers: Headers) -> None:
        """Send a head, and the end if it is wanted already."""
        try:
            self._h2.send_headers(stream.id, headers, end_stream=stream.end_wanted)
        except ProtocolError:
            if self._client:
                raise
            return  # see `send_body`
        if stream.end_wanted:
            self._sent_end(stream)
        self._flush_soon()

    def send_body(self, stream: Http2Stream) -> None:
        """Send what flow control and the socket allow."""
        try:
            size = self._send_pending(stream)
        except ProtocolError:
            # The peer has reset the stream. The library knows that as soon as it has read the frame, but the event comes after
            # those of the frames before.
            stream.unsent.clear()
            return
        self._flush_soon()
        if size:
            stream.handler.on_sent(size)

    def _send_pending(self, stream: Http2Stream) -> int:
        unsent, size = stream.unsent, 0
        while unsent and self._writable:
            step = min(self._h2.local_flow_control_window(stream.id), self._h2.max_outbound_frame_size, len(unsent))
            if step <= 0:
                break
            self._h2.send_data(stream.id, bytes(unsent[:step]))
            del unsent[:step]
            size += step
            self._write()
        if not unsent and stream.end_wanted:
            self._send_end(stream)
        return size

    def _send_end(self, stream: Http2Stream) -> None:
        trailers, stream.trailers = stream.trailers, None
        if trailers is not None:
            self._h2.send_headers(stream.id, trailers, end_stream=True)
        else:
            self._h2.end_stream(stream.id)
        self._sent_end(stream)

    def _send_bodies(self) -> None:
        for stream in list(self._streams.values()):
            if stream.unsent:
                self.send_body(stream)

    def grant(self, stream_id: int, size: int) -> None:
        """Let the peer send more."""
        try:
            self._h2.increment_flow_control_window(size, stream_id)
        except (ProtocolError, KeyError):
            return  # see `send_body`
        self._flush_soon()

    def reset(self, stream_id: int, code: int) -> None:
        """Reset a stream, unless the peer has done so."""
        self._forget(stream_id)
        try:
            self._h2.reset_stream(stream_id, code)
        except ProtocolError:
            return
        self._flush_soon()

    # --- writing ---------------------------------------------------------------------------------------------------

    def _flush_soon(self) -> None:
        if not self._flush_planned:
            self._flush_planned = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_planned = False
        self._write()

    def _write(self) -> None:
        data = self._h2.data_to_send()
        transport = self._transport
        if transport is None or not data:
            return
        transport.write(data)
        if transport.get_write_buffer_size() > (UNSENT_FRAMES.bytes or 0):
            self.abort()

    def _check_liveness(self) -> None:
        now = self._loop.time()
        if self._pinged_at is not None and now - self._pinged_at >= _KEEPALIVE_TIMEOUT_S:
            self.abort()
            return
        due = self._last_received + _KEEPALIVE_S
        if self._pinged_at is not None:
            due = self._pinged_at + _KEEPALIVE_TIMEOUT_S
        elif now >= due:
            self._h2.ping(_PING)
            self._pinged_at = now
            self._flush()
            due = now + _KEEPALIVE_TIMEOUT_S
        self._keepalive = self._loop.call_at(due, self._check_liveness)
