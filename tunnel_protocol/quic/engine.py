"""The interface to a QUIC implementation: one engine object per connection, without I/O, clock or event loop.

The endpoint passes datagrams to `receive`, calls `deliver` to run the callbacks, sends what `poll` returns and arms one timer
for `deadline`. Streams (`quic/stream.py`) call their handlers from `deliver` only, never from inside `receive`, `poll` or a
method of a stream.
"""

from typing import Final, Protocol

from mypy_extensions import mypyc_attr

from tunnel_protocol.errors import ConnectionClosedError
from tunnel_protocol.quic.stream_interface import Stream, StreamHandler
from tunnel_protocol.quic.tls import ClientTls, ServerTls

Address = tuple[str, int] | tuple[str, int, int, int] | tuple[str, int, bytes] | tuple[str, int, int, int, bytes]
"""A peer's socket address as the operating system returns it (IPv6 includes flow info and scope id). On sockets bound to all
addresses it is followed by the local address that the peer uses, in the kernel's format (4 or 16 bytes).

Both parts together identify a path (RFC 9000 section 9): addresses that differ in either part are different paths.
"""

CID_BYTES: Final = 8
"""Length in bytes of the connection ids this program chooses."""

MIN_INITIAL_BYTES: Final = 1_200
"""Minimum size in bytes of a client's first datagram (RFC 9000 section 14.1)."""


class EngineCallbacks(Protocol):
    """Callbacks of an engine. Any method may call `on_work`, `poll` also `on_connection_id*`; `deliver` calls all."""

    def on_work(self) -> None:
        """The engine has callbacks to make or data to send: call `deliver`, then `poll`, soon."""

    def on_established(self) -> None:
        """The handshake is complete; streams may be opened."""

    def on_peer_stream(self, stream: Stream) -> StreamHandler | None:
        """The peer opened a bidirectional stream; None refuses it."""

    def on_stream_credit(self) -> None:
        """The peer allows more streams than before."""

    def on_connection_id(self, connection_id: bytes) -> None:
        """A new connection id: datagrams with this destination id belong to this connection."""

    def on_connection_id_retired(self, connection_id: bytes) -> None:
        """The peer no longer uses this connection id."""

    def on_closed(self, error: ConnectionClosedError) -> None:
        """The connection has ended and the handlers of its streams were notified. Called once."""


@mypyc_attr(allow_interpreted_subclasses=True)
class Engine:
    """One QUIC connection. Times are seconds of the caller's monotonic clock.

    A base class, because compiled calls through a class are cheaper than through a protocol.
    """

    @property
    def peer_address(self) -> Address:
        """The address that packets are sent to; changes when the peer migrates."""
        raise NotImplementedError

    @property
    def server_name(self) -> str | None:
        """The SNI received (server) or sent (client)."""
        raise NotImplementedError

    @property
    def established(self) -> bool:
        """Whether the handshake is complete."""
        raise NotImplementedError

    @property
    def closed(self) -> bool:
        """Whether `shutdown` was called or the connection has ended otherwise."""
        raise NotImplementedError

    @property
    def finished(self) -> bool:
        """Whether the closing or draining period is over (RFC 9000 section 10.2): the owner may discard the engine."""
        raise NotImplementedError

    @property
    def free_streams(self) -> int:
        """Streams that can be opened without further credit."""
        raise NotImplementedError

    @property
    def open_streams(self) -> int:
        """Streams of both directions whose state is held."""
        raise NotImplementedError

    @property
    def smoothed_rtt_ms(self) -> float:
        """Smoothed round-trip time of the path in milliseconds (RFC 9002 section 5.3); 0 before the first sample."""
        raise NotImplementedError

    def receive(self, data: bytes, address: Address, now: float) -> None:
        """Process one datagram. Never raises for what a peer sent."""
        raise NotImplementedError

    def deliver(self) -> None:
        """Make the callbacks for everything that happened since the last call."""
        raise NotImplementedError

    def poll(self, now: float) -> list[tuple[bytes, int, Address]]:
        """Datagrams to send now, as runs (`datagrams.Run`); all to one address unless paths are being validated."""
        raise NotImplementedError

    def datagram_refused(self, size: int, now: float) -> None:
        """The operating system did not send a datagram of `size` bytes because the first hop does not carry it."""
        raise NotImplementedError

    def deadline(self) -> float | None:
        """When to call `handle_timer`, None for never; may change with every other call."""
        raise NotImplementedError

    def handle_timer(self, now: float) -> None:
        """Process the deadline, which has passed; call `deliver` and `poll` afterwards."""
        raise NotImplementedError

    def open_stream(self, handler: StreamHandler) -> Stream | None:
        """Open a bidirectional stream; None without stream credit (STREAMS_BLOCKED is sent to the peer)."""
        raise NotImplementedError

    def ping(self) -> None:
        """Send a PING with the next packet."""
        raise NotImplementedError

    def shutdown(self, error_code: int, reason: str) -> None:
        """Close with an application error code; the next `deliver` calls `on_closed`. No effect on a closed connection."""
        raise NotImplementedError

    def is_reset(self, data: bytes) -> bool:
        """Whether a datagram of an unknown connection id is the peer's stateless reset of this connection."""
        raise NotImplementedError

    def abandon(self, error: ConnectionClosedError) -> None:
        """End the connection without sending anything to the peer."""
        raise NotImplementedError

    def discard(self) -> None:
        """Break all reference cycles of a finished connection, so that its memory is freed at once; the last call."""
        raise NotImplementedError


class EngineFactory(Protocol):
    """Makes engines for one endpoint."""

    @property
    def reset_key(self) -> bytes:
        """The key from which stateless reset tokens are derived (`StatelessResets`)."""

    def connect(self, address: Address, tls: ClientTls, owner: EngineCallbacks, now: float) -> Engine:
        """Start a handshake as client. Raises ValueError if `tls` cannot be used."""

    def replace_tls(self, tls: ServerTls) -> None:
        """Use this TLS identity from the next `accept` on. Raises ValueError if it cannot be used."""

    def accept(
        self, data: bytes, address: Address, owner: EngineCallbacks, now: float, original_cid: bytes | None
    ) -> Engine | None:
        """A connection that has processed a client's first datagram; None if the datagram does not start one.

        `original_cid` is the destination id of the client's first packet if it followed a Retry, which proves `address`; else None.
        """

    def starts_connection(self, data: bytes) -> bool:
        """Whether this datagram with an unknown destination id has the header of a client's first datagram. No cryptography."""

    def answer_version(self, data: bytes) -> bytes | None:
        """A Version Negotiation packet if this datagram has an unsupported version (RFC 9000 section 6), else None."""

    def refuse(self, data: bytes, error_code: int, reason: str = "") -> bytes | None:
        """A CONNECTION_CLOSE packet with a transport error code (RFC 9000 section 20.1), the answer to a first datagram."""

    def close(self) -> None:
        """Close the factory's files; its engines must be finished."""


def destination_cid(data: bytes) -> bytes:
    """The destination connection id of a datagram (RFC 8999); empty if the datagram is too short to have one."""
    if not data:
        return b""
    if data[0] & 0x80:
        return data[6 : 6 + data[5]] if len(data) > 6 else b""
    return data[1 : 1 + CID_BYTES]
