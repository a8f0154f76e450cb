"""What the parts of a connection call on it. A class and not a protocol: compiled calls through a class are cheaper."""

from tunnel_protocol.errors import ConnectionClosedError
from tunnel_protocol.quic.packets import Ack
from tunnel_protocol.quic.stream_interface import Stream, StreamHandler


class ConnectionCallbacks:
    """The connection, as its parts see it."""

    def schedule_poll(self) -> None:
        """Streams have something to send or to deliver: `poll` must be called soon."""

    def on_ack_frame(self, ack: Ack, now: float) -> None:
        """Process an ACK frame of the peer. Raises `TransportError`."""

    def on_local_id_retired(self, cid: bytes) -> None:
        """The peer no longer uses this connection id of ours."""


class NullEngineCallbacks:
    """The owner of a discarded connection: nothing happens."""

    def on_work(self) -> None:
        """See `EngineCallbacks`."""

    def on_established(self) -> None:
        """See `EngineCallbacks`."""

    def on_peer_stream(self, stream: Stream) -> StreamHandler | None:  # noqa: ARG002 - the port's signature
        """See `EngineCallbacks`."""
        return None  # said explicitly: compiled, a body without a statement would return nothing at all

    def on_stream_credit(self) -> None:
        """See `EngineCallbacks`."""

    def on_connection_id(self, connection_id: bytes) -> None:
        """See `EngineCallbacks`."""

    def on_connection_id_retired(self, connection_id: bytes) -> None:
        """See `EngineCallbacks`."""

    def on_closed(self, error: ConnectionClosedError) -> None:
        """See `EngineCallbacks`."""
