"""What a handshake hands over to the connection that goes on with it (RFC 9001 section 4.9.2), and the handshake as a port."""

from collections.abc import Callable
from typing import Protocol

from tunnel_protocol.errors import ConnectionClosedError
from tunnel_protocol.quic.connection_ids import PeerConnectionId
from tunnel_protocol.quic.engine import Address
from tunnel_protocol.quic.packet_protection import CipherSuite
from tunnel_protocol.quic.qlog import ConnectionTrace
from tunnel_protocol.quic.stream_table import PeerLimits


class PeerParameters:
    """The peer's transport parameters that matter after the handshake (RFC 9000 section 18.2)."""

    __slots__ = (
        "ack_delay_exponent",
        "active_connection_id_limit",
        "limits",
        "max_ack_delay_ms",
        "max_idle_timeout_ms",
        "max_udp_payload_bytes",
    )

    def __init__(
        self,
        limits: PeerLimits,
        *,
        max_idle_timeout_ms: int = 0,
        max_udp_payload_bytes: int = 65_527,
        ack_delay_exponent: int = 3,
        max_ack_delay_ms: int = 25,
        active_connection_id_limit: int = 2,
    ) -> None:
        self.limits = limits
        self.max_idle_timeout_ms = max_idle_timeout_ms
        """0: none."""
        self.max_udp_payload_bytes = max_udp_payload_bytes
        self.ack_delay_exponent = ack_delay_exponent
        self.max_ack_delay_ms = max_ack_delay_ms
        self.active_connection_id_limit = active_connection_id_limit


class HandOver:
    """Keys, parameters, connection ids and the path of a complete handshake. No 1-RTT packet was sent or received before."""

    __slots__ = (
        "address",
        "is_client",
        "local_cid",
        "make_cid",
        "opening_secret",
        "parameters",
        "peer_cid",
        "reset_token",
        "rtt_s",
        "rtt_variance_s",
        "sealing_secret",
        "suite",
        "trace",
    )

    def __init__(
        self,
        *,
        is_client: bool,
        suite: CipherSuite,
        opening_secret: bytes,
        sealing_secret: bytes,
        parameters: PeerParameters,
        local_cid: bytes,
        peer_cid: PeerConnectionId,
        address: Address,
        rtt_s: float,
        rtt_variance_s: float,
        make_cid: Callable[[], bytes],
        reset_token: Callable[[bytes], bytes],
        trace: ConnectionTrace | None,
    ) -> None:
        self.is_client = is_client
        self.suite = suite
        self.opening_secret = opening_secret
        """TLS traffic secret of packets that are received (RFC 9001 section 5.1)."""
        self.sealing_secret = sealing_secret
        self.parameters = parameters
        self.local_cid = local_cid
        self.peer_cid = peer_cid
        self.address = address
        """The peer's address, which the handshake has validated."""
        self.rtt_s = rtt_s
        """Smoothed round trip time; 0: the handshake has none."""
        self.rtt_variance_s = rtt_variance_s
        self.make_cid = make_cid
        """Makes a further connection id of ours."""
        self.reset_token = reset_token
        """The stateless reset token of a connection id of ours."""
        self.trace = trace


class Handshake(Protocol):
    """One handshake: Initial and Handshake packets and TLS, without I/O. It never reads or writes a 1-RTT packet."""

    @property
    def peer_address(self) -> Address:
        """The address that packets are sent to."""

    @property
    def server_name(self) -> str | None:
        """The SNI received (server) or sent (client)."""

    @property
    def closed(self) -> bool:
        """Whether the handshake has failed or was closed."""

    @property
    def finished(self) -> bool:
        """Whether the closing or draining period is over."""

    def closed_error(self) -> ConnectionClosedError:
        """Why the handshake is `closed`."""

    def receive(self, data: bytes, address: Address, now: float) -> None:
        """Process a datagram with long header packets. Never raises for what a peer sent."""

    def poll(self, now: float) -> list[tuple[bytes, Address]]:
        """Datagrams to send now."""

    def deadline(self) -> float | None:
        """When to call `handle_timer`, None for never."""

    def handle_timer(self, now: float) -> None:
        """Process the deadline, which has passed."""

    def hand_over(self) -> HandOver | None:
        """What the connection needs, once, after the handshake is complete; else None."""

    def shutdown(self, error_code: int, reason: str) -> None:
        """Close with an application error code; the peer is told by the next `poll`."""

    def abandon(self) -> None:
        """End without telling the peer."""

    def discard(self) -> None:
        """Break all reference cycles; the last call."""
