"""One accepted connection: its transport, the calls on it, and the PING that finds a peer which vanished."""

import asyncio
from typing import Final, Protocol, cast

import structlog

from router.grpc import header_blocks
from router.grpc.call import Call
from router.grpc.frames import ErrorCode, Flood, FloodError, Http2Error
from router.grpc.header_blocks import MalformedRequestError, RequestHead
from router.grpc.header_decoder import Headers, size_of
from router.grpc.http2_connection import Http2Connection
from router.grpc.status import Status
from router.grpc.stream import Http2Stream
from tunnel_protocol.control.grpc_options import KEEPALIVE_MS, KEEPALIVE_TIMEOUT_MS, METADATA
from tunnel_protocol.limit import Limit

_log = structlog.get_logger()

UNSENT_FRAMES: Final = Limit("grpc.unsent_frames", bytes=4 << 20)
"""Bytes for the socket of a peer that does not read while it causes answers."""

_UNSENT = UNSENT_FRAMES.bytes or 0
_WORK_OF_TURN: Final = 256
"""Frames of one connection that are handled in one turn of the event loop; a flood leaves it to others between."""
_KEEPALIVE_S: Final = KEEPALIVE_MS / 1000
_KEEPALIVE_TIMEOUT_S: Final = KEEPALIVE_TIMEOUT_MS / 1000
_FLOOD_S: Final = 0.1
"""Seconds for the last words to a peer whose flood ended its connection."""
_PREFACE_S: Final = 10.0
"""Seconds from the acceptance of a connection to the end of its preface."""
_METADATA: Final = METADATA.bytes or 0


class Calls(Protocol):
    """What a connection asks of its server."""

    def opened(self, connection: "ServerConnection") -> None:
        """The connection was accepted."""

    def closed(self, connection: "ServerConnection") -> None:
        """It is closed."""

    def begin(self, call: Call, head: RequestHead) -> None:
        """Run the handler of a call."""

    def over(self, call: Call) -> None:
        """A call was ended, or its peer is gone."""

    def flooded(self, limit: Flood) -> None:
        """A connection is closed because its peer exceeded `limit`."""


class ServerConnection(asyncio.Protocol):
    """A protocol for `create_server`."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._flush_planned = True  # until there is a transport
        self._http2 = Http2Connection(self._on_request, self._flush_soon)
        self._peer = ""
        self._last_received = 0.0
        self._pinged_at = 0.0
        """When the unanswered PING was sent; 0 without one."""
        self._closing = False
        self._going_on = False
        """Whether received frames are left for the next turn; nothing is read meanwhile."""

    @property
    def streams(self) -> int:
        """Number of open streams."""
        return len(self._http2.streams)

    def go_away(self) -> None:
        """Tell the peer to begin no more calls; closes when the last one has ended."""
        self._http2.go_away()
        self._flush()
        self._close_if_over()

    def check(self, now: float) -> None:
        """Send a PING to a silent peer, and close on one that does not answer. Called every second or so."""
        if not self._http2.settled:
            if now - self._last_received > _PREFACE_S:
                self.abort()
        elif self._pinged_at:
            if now - self._pinged_at >= _KEEPALIVE_TIMEOUT_S:
                self.abort()
        elif now - self._last_received >= _KEEPALIVE_S:
            self._pinged_at = now
            self._http2.ping()

    def abort(self) -> None:
        """Close at once; what was written may be lost."""
        self._closing = True
        if self._transport is not None:
            self._transport.abort()

    # --- asyncio.Protocol ------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the settings."""
        self._transport = cast("asyncio.Transport", transport)
        self._peer = _peer_of(transport.get_extra_info("peername"))
        self._last_received = self._loop.time()
        self._calls.opened(self)
        self._flush()

    def data_received(self, data: bytes) -> None:
        """Handle frames."""
        transport = self._transport
        if self._closing or transport is None:
            return
        now = self._loop.time()
        if self._http2.settled:
            self._last_received = now  # a preface that trickles in has no more time than one that does not
        self._pinged_at = 0.0
        self._handle(transport, data, now)

    def _handle(self, transport: asyncio.Transport, data: bytes, now: float) -> None:
        try:
            more = self._http2.receive(data, now, _WORK_OF_TURN)
        except Http2Error as error:
            self._http2.fail(error)
            self._closing = True
            self._flush()
            if isinstance(error, FloodError):
                self._flooded(error.limit, error.text)
                self._close_flooding(transport)
            else:
                self._close(transport)
            return
        self._flush()
        if self._http2.going_away:
            self._close_if_over()
        if more and not self._going_on and not self._closing:
            self._going_on = True
            transport.pause_reading()
            self._loop.call_soon(self._go_on)

    def _go_on(self) -> None:
        self._going_on = False
        transport = self._transport
        if transport is None or self._closing:
            return
        self._handle(transport, b"", self._loop.time())
        if not self._going_on and not self._closing:
            transport.resume_reading()

    def eof_received(self) -> bool:
        """The peer has closed: close too."""
        return False

    def connection_lost(self, _error: Exception | None) -> None:
        """Every call is over."""
        self._closing = True
        self._transport = None
        self._calls.closed(self)
        self._http2.lost()

    def pause_writing(self) -> None:
        """The socket is full: messages wait."""
        self._http2.pause()

    def resume_writing(self) -> None:
        """The socket takes more."""
        self._http2.resume()

    # --- Calls -----------------------------------------------------------------------------------------------------

    def _on_request(self, stream: Http2Stream, headers: Headers) -> None:
        try:
            head = header_blocks.read_head(headers)
        except MalformedRequestError:
            self._http2.reset(stream, ErrorCode.PROTOCOL_ERROR)
            return
        if head.method != b"POST" or not head.content_type.startswith(b"application/grpc"):
            status = 405 if head.method != b"POST" else 415
            self._http2.send_headers(stream, header_blocks.refusal(status), end=True)
            return
        call = Call(self._http2, stream, self._peer, head.fields, self._over)
        stream.receiver = call
        size = size_of(headers)
        if size > _METADATA:
            call.end(Status.RESOURCE_EXHAUSTED, f"metadata of {size} bytes, where at most {_METADATA} are allowed")
        elif head.encoding != b"identity":
            call.end(Status.UNIMPLEMENTED, "messages must not be compressed")
        else:
            self._calls.begin(call, head)

    def _over(self, call: Call) -> None:
        self._calls.over(call)
        if self._http2.going_away and not self._closing:
            self._loop.call_soon(self._close_if_over)

    # --- Writing ---------------------------------------------------------------------------------------------------

    def _flush_soon(self) -> None:
        if not self._flush_planned:
            self._flush_planned = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_planned = False
        transport = self._transport
        if transport is None:
            return
        data = self._http2.take_output()
        if data:
            transport.write(data)
            if transport.get_write_buffer_size() > _UNSENT:
                if not self._closing:
                    self._flooded(Flood.UNSENT_FRAMES, "the peer does not read what it causes")
                self.abort()

    def _flooded(self, limit: Flood, why: str) -> None:
        _log.warning("gRPC connection closed", peer=self._peer, reason=why)
        self._calls.flooded(limit)

    def _close_if_over(self) -> None:
        transport = self._transport
        if transport is not None and not self._closing and not self._http2.streams:
            self._flush()
            self._close(transport)

    def _close_flooding(self, transport: asyncio.Transport) -> None:
        """As `_close`, but read no more: with TLS a connection is read until the peer has closed it, too."""
        if not self._going_on:
            transport.pause_reading()
        self._close(transport, _FLOOD_S)

    def _close(self, transport: asyncio.Transport, within_s: float = _KEEPALIVE_TIMEOUT_S) -> None:
        """Close when what was written has been sent, for which the peer has the time of a PING."""
        self._closing = True
        transport.close()
        self._loop.call_later(within_s, transport.abort)


def _peer_of(address: object) -> str:
    """A peer as the gRPC library writes it; an IPv4 address that was mapped into IPv6 is IPv4."""
    if not isinstance(address, tuple) or len(address) < 2:
        return "unknown"
    host, port = str(address[0]).removeprefix("::ffff:"), int(address[1])
    return f"ipv6:[{host}]:{port}" if ":" in host else f"ipv4:{host}:{port}"
