"""A tunnel: one QUIC connection with one inference server, plus its framing, on which exchanges are opened.

A tunnel that was removed from its set stays open until the exchanges running on it have ended, then closes its connection.
See docs/protocol.md, "Connection sets".
"""

import asyncio
from typing import Final, Protocol

import structlog

from router.ports.tunnels import ExchangeSink, TunnelError
from router.tunnels.exchange import ExchangeCallbacks, StreamExchange
from tunnel_protocol.errors import ConnectionClosedError, StreamClosedError, StreamCreditError
from tunnel_protocol.framing import Framing
from tunnel_protocol.head import RequestHead
from tunnel_protocol.quic.stream_interface import Stream, StreamHandler

_log = structlog.get_logger()

SHUTDOWN: Final = "shutdown"
"""Reason in the CONNECTION_CLOSE frame of tunnels that close because the router ends (docs/protocol.md, "Failures")."""

PING_S: Final = 1.0
"""Pause in seconds between two PING frames on a released tunnel."""

SILENT_S: Final = 5.0
"""A released tunnel that receives nothing for this many seconds is closed, which breaks off its exchanges."""


class TunnelConnection(Protocol):
    """What a tunnel uses of a QUIC connection."""

    @property
    def peer_address(self) -> tuple[str, int]:
        """Address and port the peer's packets come from."""

    @property
    def closed(self) -> bool:
        """Whether the connection has ended."""

    @property
    def free_streams(self) -> int:
        """Number of streams that can be opened without waiting."""

    @property
    def last_received_at(self) -> float:
        """Loop time of the last datagram from the peer."""

    def ping(self) -> None:
        """Send a PING frame, which the peer acknowledges."""

    def try_open_stream(self, handler: StreamHandler) -> Stream | None:
        """Open a bidirectional stream without waiting; None if no stream is free."""

    async def open_stream(self, handler: StreamHandler) -> Stream:
        """Open a bidirectional stream, waiting in arrival order for credit."""

    def close(self, error_code: int = 0, reason: str = "") -> None:
        """Close the connection at once."""


class Tunnel(ExchangeCallbacks):
    """One tunnel; implements `SlotConnection` for its slot."""

    def __init__(self, connection: TunnelConnection, framing: Framing, inference_server_id: str) -> None:
        super().__init__(inference_server_id)
        self.connection = connection
        self.suspected = False
        self.silent_since = float("-inf")
        """Loop time at which the silence began that made it suspected last."""
        self.running = 0
        """Number of exchanges that are open or being opened."""
        self._framing = framing
        self._released = False

    @property
    def closed(self) -> bool:
        """Whether the QUIC connection has ended."""
        return self.connection.closed

    @property
    def free_streams(self) -> int:
        """Number of streams that can be opened now without waiting."""
        return self.connection.free_streams

    def try_open(self, head: RequestHead, sink: ExchangeSink, *, end: bool) -> StreamExchange | None:
        """As `open`, without waiting: None if no stream is free. Raises `TunnelError`."""
        exchange = StreamExchange(self, self._framing, sink)
        first = exchange.encode_head(head)
        try:
            stream = self.connection.try_open_stream(exchange)
            if stream is None:
                return None
            exchange.begin(stream, first, end=end)
        except (ConnectionClosedError, StreamClosedError) as error:
            raise TunnelError(f"connection to inference server '{self.inference_server_id}' is closed") from error
        self.running += 1
        return exchange

    async def open(self, head: RequestHead, sink: ExchangeSink, *, end: bool) -> StreamExchange:
        """Open a stream and send the head (and FIN if `end`). Waits for stream credit; raises `TunnelError`."""
        exchange = StreamExchange(self, self._framing, sink)
        first = exchange.encode_head(head)
        self.running += 1
        try:
            stream = await self.connection.open_stream(exchange)
            exchange.begin(stream, first, end=end)
        except (ConnectionClosedError, StreamClosedError) as error:
            self.exchange_over()
            raise TunnelError(f"connection to inference server '{self.inference_server_id}' is closed") from error
        except StreamCreditError as full:
            self.exchange_over()
            raise TunnelError(str(full)) from full
        except BaseException:  # cancelled while waiting for credit, or the connection closed
            self.exchange_over()
            raise
        return exchange

    def exchange_over(self) -> None:
        """One exchange has ended; the last one closes a released tunnel."""
        self.running -= 1
        if self._released and self.running == 0:
            self.connection.close()

    def release(self) -> None:
        """Open no further exchange; close the connection now, or when the last running exchange ends."""
        if self._released:
            return
        self._released = True
        if self.running == 0:
            self.connection.close()
        else:
            self._linger(asyncio.get_running_loop().time())

    def _linger(self, released_at: float) -> None:
        """Send PING frames on a released tunnel, which has no probes: prevents the idle timeout, detects a dead worker."""
        if self.closed or self.running == 0:
            return
        loop = asyncio.get_running_loop()
        if loop.time() - max(self.connection.last_received_at, released_at) > SILENT_S:
            _log.warning(
                "worker of an ended registration is silent, breaking its responses off",
                inference_server_id=self.inference_server_id,
                running=self.running,
            )
            self.connection.close(reason="silent")
            return
        self.connection.ping()
        loop.call_later(PING_S, self._linger, released_at)
