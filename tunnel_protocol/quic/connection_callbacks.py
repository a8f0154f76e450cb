"""What the parts of a connection call on it. A class and not a protocol: compiled calls through a class are cheaper."""

from tunnel_protocol.quic.packets import Ack


class ConnectionCallbacks:
    """The connection, as its parts see it."""

    def schedule_poll(self) -> None:
        """Streams have something to send or to deliver: `poll` must be called soon."""

    def on_ack_frame(self, ack: Ack, now: float) -> None:
        """Process an ACK frame of the peer. Raises `TransportError`."""

    def on_local_id_retired(self, cid: bytes) -> None:
        """The peer no longer uses this connection id of ours."""
