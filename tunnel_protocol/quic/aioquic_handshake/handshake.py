# ruff: noqa: SLF001 - this package uses private attributes of aioquic
"""A handshake by aioquic: Initial and Handshake packets, TLS, Retry, and what is handed over at its end.

aioquic never gets the keys of 1-RTT packets, so it can neither read nor write one.
"""

import os
import secrets
from collections.abc import Callable

from aioquic import tls
from aioquic.buffer import Buffer  # type: ignore[attr-defined]  # re-exported without saying so
from aioquic.quic import events
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import END_STATES, QuicConnectionState, QuicNetworkPath
from aioquic.quic.packet import QuicErrorCode, QuicTransportParameters, pull_quic_transport_parameters
from aioquic.quic.packet_builder import QuicPacketBuilder
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import Encoding

from tunnel_protocol.errors import ConnectionClosedError
from tunnel_protocol.quic.address_validation import RESET_TOKEN_BYTES
from tunnel_protocol.quic.aioquic_handshake.bounded import BoundedConnection
from tunnel_protocol.quic.aioquic_handshake.observers import Trace
from tunnel_protocol.quic.connection_ids import PeerConnectionId
from tunnel_protocol.quic.engine import CID_BYTES, Address
from tunnel_protocol.quic.hand_over import HandOver, PeerParameters
from tunnel_protocol.quic.packet_protection import CipherSuite
from tunnel_protocol.quic.settings import QuicSettings
from tunnel_protocol.quic.stream_table import PeerLimits

_ONE_RTT = tls.Epoch.ONE_RTT
_DECRYPT = tls.Direction.DECRYPT
_TIMED_OUT = (QuicErrorCode.INTERNAL_ERROR, "Idle timeout")


class AioquicHandshake(BoundedConnection):
    """Implements `Handshake`."""

    def __init__(
        self,
        settings: QuicSettings,
        configuration: QuicConfiguration,
        original_destination_connection_id: bytes | None = None,
    ) -> None:
        super().__init__(
            configuration=configuration, original_destination_connection_id=original_destination_connection_id
        )
        self.anchors: tuple[x509.Certificate, ...] = ()
        """Trust anchors of a client."""
        self.server_name: str | None = configuration.server_name
        self._reset_token: Callable[[bytes], bytes] = _random_reset_token
        self._cid_prefix = b""
        self._secrets: dict[tls.Direction, bytes] = {}
        """TLS traffic secrets of 1-RTT packets by direction."""
        self._suite = CipherSuite.AES_128_GCM_SHA256
        self._parameters = QuicTransportParameters()
        self._handed_over = False
        self._error: ConnectionClosedError | None = None
        self._close_packets: list[tuple[bytes, Address]] = []
        """Datagrams with our CONNECTION_CLOSE, kept to repeat them to a peer that continues to send."""
        self._late_packets = 0
        self._repeat_close = False
        self._local_max_streams_bidi.value = self._local_max_streams_bidi.sent = settings.max_streams_bidi
        # raw-quic uses no unidirectional streams: grant none.
        self._local_max_streams_uni.value = self._local_max_streams_uni.sent = 0

    # --- properties --------------------------------------------------------------------------------------------------

    @property
    def peer_address(self) -> Address:
        """See `Handshake`."""
        return self._network_paths[0].addr  # type: ignore[no-any-return]

    @property
    def authenticated(self) -> bool:
        """Whether a packet of the peer was decrypted."""
        return self._state is not QuicConnectionState.FIRSTFLIGHT

    @property
    def closed(self) -> bool:
        """See `Handshake`."""
        return self._close_event is not None or self._state in END_STATES

    @property
    def finished(self) -> bool:
        """See `Handshake`."""
        return self._state is QuicConnectionState.TERMINATED

    def closed_error(self) -> ConnectionClosedError:
        """See `Handshake`."""
        if self._error is not None:
            return self._error
        event = self._close_event
        assert event is not None  # noqa: S101 - every way to an end state sets it
        code, reason = event.error_code, event.reason_phrase
        if (code, reason) == _TIMED_OUT:
            return ConnectionClosedError(None, "idle timeout", by_peer=False)
        return ConnectionClosedError(int(code), reason, by_peer=self._state is QuicConnectionState.DRAINING)

    # --- datagrams and time ------------------------------------------------------------------------------------------

    def receive(self, data: bytes, address: Address, now: float) -> None:
        """See `Handshake`."""
        if self._state is QuicConnectionState.CLOSING:
            # RFC 9000 section 10.2.1: repeat CONNECTION_CLOSE after 1, 2, 4, 8, ... packets.
            self._late_packets += 1
            self._repeat_close = self._late_packets & (self._late_packets - 1) == 0
            return
        self.receive_datagram(data, address, now)

    def poll(self, now: float) -> list[tuple[bytes, Address]]:
        """See `Handshake`."""
        if self._state in END_STATES:
            if self._repeat_close:
                self._repeat_close = False
                return self._close_packets
            return []
        closing = self._close_pending
        datagrams = self.datagrams_to_send(now)
        if closing:
            self._close_packets = datagrams
        self._events.clear()
        return datagrams

    def deadline(self) -> float | None:
        """See `Handshake`."""
        return self.get_timer()

    # --- the end -----------------------------------------------------------------------------------------------------

    def hand_over(self) -> HandOver | None:
        """See `Handshake`."""
        if self._handed_over or not self._handshake_complete or self.closed:
            return None
        self._handed_over = True
        loss = self._loss
        trace, self._quic_logger = self._quic_logger, None
        return HandOver(
            is_client=self._is_client,
            suite=self._suite,
            opening_secret=self._secrets[_DECRYPT],
            sealing_secret=self._secrets[tls.Direction.ENCRYPT],
            parameters=_peer_parameters(self._parameters),
            local_cid=self.host_cid,
            peer_cid=PeerConnectionId(0, self._peer_cid.cid, self._peer_cid.stateless_reset_token),
            address=self.peer_address,
            rtt_s=loss._rtt_smoothed if loss._rtt_initialized else 0.0,
            rtt_variance_s=loss._rtt_variance,
            make_cid=_random_cids(self._cid_prefix),
            reset_token=self._reset_token,
            trace=trace if isinstance(trace, Trace) else None,
        )

    def shutdown(self, error_code: int, reason: str) -> None:
        """See `Handshake`."""
        self._error = ConnectionClosedError(error_code, reason, by_peer=False)
        self.close(error_code=error_code, reason_phrase=reason)

    def abandon(self) -> None:
        """See `Handshake`."""
        if self._state is QuicConnectionState.TERMINATED:
            return
        if self._close_event is None:
            self._close_event = events.ConnectionTerminated(
                error_code=QuicErrorCode.NO_ERROR, frame_type=None, reason_phrase=""
            )
        self._close_pending = False
        self._close_end()

    # --- 1-RTT packets are not aioquic's -----------------------------------------------------------------------------

    def _update_traffic_key(
        self, direction: tls.Direction, epoch: tls.Epoch, cipher_suite: tls.CipherSuite, secret: bytes
    ) -> None:
        if epoch is not _ONE_RTT:
            super()._update_traffic_key(direction, epoch, cipher_suite, secret)
            return
        self._suite = CipherSuite(int(cipher_suite))
        self._secrets[direction] = secret
        log = self._configuration.secrets_log_file
        if log is not None:
            side = "SERVER" if self._is_client == (direction is _DECRYPT) else "CLIENT"
            log.write(f"{side}_TRAFFIC_SECRET_0 {self.tls.client_random.hex()} {secret.hex()}\n")
            log.flush()

    def _write_application(self, builder: QuicPacketBuilder, network_path: QuicNetworkPath, now: float) -> None:
        """Nothing: there are no 0-RTT packets, and 1-RTT packets are written elsewhere."""

    def _replenish_connection_ids(self) -> None:
        """Nothing: further connection ids are issued in 1-RTT packets."""

    def _parse_transport_parameters(self, data: bytes, from_session_ticket: bool = False) -> None:
        super()._parse_transport_parameters(data, from_session_ticket)
        self._parameters = pull_quic_transport_parameters(Buffer(data=data))

    # --- address validation and stateless resets ---------------------------------------------------------------------

    def use_reset_tokens(self, token: Callable[[bytes], bytes]) -> None:
        """Use `token` to make the stateless reset tokens of our connection ids. Call it before the first packet."""
        self._reset_token = token
        self._host_cids[0].stateless_reset_token = token(self.host_cid)

    def use_cid_prefix(self, prefix: bytes) -> None:
        """Begin our connection ids with `prefix`. Call it before `use_reset_tokens` and before the first packet."""
        self._cid_prefix = prefix
        first = self._host_cids[0]
        first.cid = prefix + first.cid[len(prefix) :]
        self.host_cid = self._local_initial_source_connection_id = first.cid

    def follows_retry(self, retry_cid: bytes, address: Address) -> None:
        """Mark `address` as validated by a Retry whose source id was `retry_cid`. Call it before the first packet."""
        self._retry_source_connection_id = retry_cid
        self._network_paths = [QuicNetworkPath(address, is_validated=True)]

    # --- TLS ---------------------------------------------------------------------------------------------------------

    def _initialize(self, peer_cid: bytes) -> None:
        super()._initialize(peer_cid)
        if self._is_client:
            verify = self.tls._client_handle_certificate_verify

            def choose_anchors(input_buf: Buffer) -> None:
                self.tls._cadata = self._anchors_for(self.tls._peer_certificate, self.tls._peer_certificate_chain)
                verify(input_buf)

            self.tls._client_handle_certificate_verify = choose_anchors  # type: ignore[method-assign]
        else:
            handle_hello = self.tls._server_handle_hello

            def look_at_hello(input_buf: Buffer, initial_buf: Buffer, handshake_buf: Buffer) -> None:
                hello = tls.pull_client_hello(Buffer(data=input_buf.data_slice(0, input_buf.capacity)))
                self.server_name = hello.server_name
                if hello.alpn_protocols and not self._configuration.alpn_protocols:
                    # Without configured ALPN this is raw-quic; a client that offers ALPN uses another protocol.
                    raise tls.AlertNoApplicationProtocol("No common ALPN protocols")
                handle_hello(input_buf, initial_buf, handshake_buf)

            self.tls._server_handle_hello = look_at_hello  # type: ignore[method-assign]

    def _anchors_for(self, leaf: x509.Certificate | None, chain: list[x509.Certificate]) -> bytes:
        """The trust anchors (PEM) that issued one of the server's certificates, or that equal its leaf.

        OpenSSL finds an anchor by its subject, but a bundle can hold several anchors with one subject while identities are rotated.
        """
        anchors = [anchor for anchor in self.anchors if anchor == leaf]
        if leaf is not None and not anchors:
            anchors = [anchor for anchor in self.anchors if any(_issued(anchor, one) for one in (leaf, *chain))]
        return b"".join(anchor.public_bytes(Encoding.PEM) for anchor in anchors)


def _issued(issuer: x509.Certificate, certificate: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _random_reset_token(_cid: bytes) -> bytes:
    return secrets.token_bytes(RESET_TOKEN_BYTES)


def _random_cids(prefix: bytes) -> Callable[[], bytes]:
    return lambda: prefix + os.urandom(CID_BYTES - len(prefix))


def _peer_parameters(parameters: QuicTransportParameters) -> PeerParameters:
    """The peer's transport parameters, with the defaults of RFC 9000 section 18.2 for those it did not send."""
    return PeerParameters(
        PeerLimits(
            parameters.initial_max_data or 0,
            parameters.initial_max_streams_bidi or 0,
            parameters.initial_max_stream_data_bidi_local or 0,
            parameters.initial_max_stream_data_bidi_remote or 0,
        ),
        max_idle_timeout_ms=parameters.max_idle_timeout or 0,
        max_udp_payload_bytes=65_527 if parameters.max_udp_payload_size is None else parameters.max_udp_payload_size,
        ack_delay_exponent=3 if parameters.ack_delay_exponent is None else parameters.ack_delay_exponent,
        max_ack_delay_ms=25 if parameters.max_ack_delay is None else parameters.max_ack_delay,
        active_connection_id_limit=2
        if parameters.active_connection_id_limit is None
        else parameters.active_connection_id_limit,
    )
