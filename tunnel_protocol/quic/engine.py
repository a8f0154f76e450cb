"""The port to a QUIC library: one object per connection, without I/O, clock or event loop of its own.

The endpoint feeds datagrams (`receive`), then lets the engine call back (`deliver`), then sends what `poll` returns and
arms one timer for `deadline`. Streams are the engine's own objects (`quic/stream.py`) and call their handlers from
`deliver` only, never from inside `receive`, `poll` or a method of a stream.
"""

from typing import Protocol

from tunnel_protocol.errors import ConnectionClosedError
from tunnel_protocol.quic.stream_interface import Stream, StreamHandler
from tunnel_protocol.quic.tls import ClientTls, ServerTls

Address = tuple[str, int] | tuple[str, int, int, int] | tuple[str, int, bytes] | tuple[str, int, int, int, bytes]
"""A peer's socket address as the operating system writes it (IPv6 has flow info and scope), on sockets bound to all
addresses followed by the address of this host that the peer uses, as the kernel writes it (4 or 16 bytes).

Both together make a path (RFC 9000 section 9): engines take two that differ in either part for two paths.
"""

CID_BYTES = 8
"""Length of the connection ids we choose."""

MIN_INITIAL_BYTES = 1_200
"""A client's first datagram is at least this long (RFC 9000 section 14.1)."""


class EngineCallbacks(Protocol):
    """What the engine of one connection tells. The first may be called from anywhere, the ids from `poll` too, the rest from `deliver` only."""

    def on_work(self) -> None:
        """There is something to deliver or to send: call `deliver`, then `poll`, soon."""

    def on_established(self) -> None:
        """The handshake is complete; streams may be opened."""

    def on_peer_stream(self, stream: Stream) -> StreamHandler | None:
        """The peer opened a bidirectional stream; None refuses it."""

    def on_stream_credit(self) -> None:
        """The peer allows more streams than before."""

    def on_connection_id(self, connection_id: bytes) -> None:
        """Datagrams with this destination id belong to this connection."""

    def on_connection_id_retired(self, connection_id: bytes) -> None:
        """No datagram will bear this id any more."""

    def on_closed(self, error: ConnectionClosedError) -> None:
        """The connection has ended; its streams have been told. Called once."""


class Engine(Protocol):
    """One QUIC connection. Times are seconds of the caller's monotonic clock."""

    @property
    def peer_address(self) -> Address:
        """Where packets are sent to; changes when the peer migrates."""

    @property
    def server_name(self) -> str | None:
        """The SNI received (server) or sent (client)."""

    @property
    def established(self) -> bool:
        """The handshake is complete."""

    @property
    def closed(self) -> bool:
        """`shutdown` was called, or the connection ended otherwise."""

    @property
    def finished(self) -> bool:
        """Closed, and nothing is left to send or to ignore: the owner may forget it."""

    @property
    def free_streams(self) -> int:
        """Streams that can be opened without further credit."""

    @property
    def open_streams(self) -> int:
        """Streams of both directions whose state is held."""

    @property
    def smoothed_rtt_ms(self) -> float:
        """The path's round-trip time; 0 before the first measurement."""

    def receive(self, data: bytes, address: Address, now: float) -> None:
        """Take one datagram. Never raises for what a peer sent."""

    def deliver(self) -> None:
        """Call back for everything that happened since the last time."""

    def poll(self, now: float) -> list[tuple[bytes, Address]]:
        """What to send now; all to one address unless paths are being validated."""

    def datagram_refused(self, size: int, now: float) -> None:
        """The operating system did not send a datagram of `size` bytes because the first hop does not carry it."""

    def deadline(self) -> float | None:
        """When to call `handle_timer`; may move after every other call."""

    def handle_timer(self, now: float) -> None:
        """The deadline has passed; `deliver` and `poll` afterwards."""

    def open_stream(self, handler: StreamHandler) -> Stream | None:
        """Open a bidirectional stream; None without stream credit (the peer is told that we are blocked)."""

    def ping(self) -> None:
        """Send a PING with the next packet."""

    def shutdown(self, error_code: int, reason: str) -> None:
        """Close with an application code; `on_closed` follows with the next `deliver`. No effect when closed."""

    def is_reset(self, data: bytes) -> bool:
        """Whether a datagram of an unknown connection id is the peer's stateless reset of this connection."""

    def abandon(self, error: ConnectionClosedError) -> None:
        """Forget the connection without a word to the peer."""

    def discard(self) -> None:
        """The connection is finished and its owner forgets it: cut all cycles of references, so that it is freed at once."""


class EngineFactory(Protocol):
    """Makes engines for one endpoint."""

    @property
    def reset_key(self) -> bytes:
        """What the stateless reset tokens of our connection ids are made with (`StatelessResets`)."""

    def connect(self, address: Address, tls: ClientTls, owner: EngineCallbacks, now: float) -> Engine:
        """Start a handshake as client. Raises ValueError if `tls` cannot be used."""

    def replace_tls(self, tls: ServerTls) -> None:
        """Serve this identity from the next `accept` on. Raises ValueError if it cannot be used."""

    def accept(
        self, data: bytes, address: Address, owner: EngineCallbacks, now: float, original_cid: bytes | None
    ) -> Engine | None:
        """A connection for a client's first datagram, which is taken in; None if it does not start one.

        With `original_cid` the client has followed a Retry: it sent its first packet to that id, and `address` is proved.
        """

    def starts_connection(self, data: bytes) -> bool:
        """Whether this datagram of an unknown destination id looks like a client's first; cheap."""

    def answer_version(self, data: bytes) -> bytes | None:
        """A version negotiation packet, if that is what this datagram needs."""

    def refuse(self, data: bytes, error_code: int) -> bytes | None:
        """A packet that tells the sender of a first datagram this transport error code (RFC 9000 section 20.1)."""

    def close(self) -> None:
        """Release what the factory holds (files); its engines must be finished."""


def destination_cid(data: bytes) -> bytes:
    """The destination connection id of a datagram (RFC 8999); empty if there is none to be found."""
    if not data:
        return b""
    if data[0] & 0x80:
        return data[6 : 6 + data[5]] if len(data) > 6 else b""
    return data[1 : 1 + CID_BYTES]
