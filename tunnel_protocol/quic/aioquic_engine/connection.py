# ruff: noqa: SLF001 - this package uses private attributes of aioquic
"""Implements the interface `quic/engine.py` for one connection: callbacks, closing and timers."""

import hmac
from collections.abc import Callable

import structlog
from aioquic import tls
from aioquic.buffer import Buffer  # type: ignore[attr-defined]  # re-exported without saying so
from aioquic.quic import events
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import END_STATES, QuicConnectionState, QuicNetworkPath
from aioquic.quic.packet import QuicErrorCode
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import Encoding

from tunnel_protocol.errors import ConnectionClosedError
from tunnel_protocol.limit import Limit
from tunnel_protocol.quic.address_validation import RESET_TOKEN_BYTES
from tunnel_protocol.quic.aioquic_engine.one_rtt import OneRttConnection
from tunnel_protocol.quic.engine import Address, EngineCallbacks
from tunnel_protocol.quic.path_mtu import BASE_BYTES
from tunnel_protocol.quic.settings import QuicSettings
from tunnel_protocol.quic.stream import BidirectionalStream
from tunnel_protocol.quic.stream_interface import Stream, StreamHandler

_log = structlog.get_logger()

_CONNECTED = QuicConnectionState.CONNECTED

_PTOS_BEFORE_SMALL_DATAGRAMS = 3
"""After this many consecutive probe timeouts the datagram size falls back to 1,200 bytes (RFC 8899 section 4.3)."""

PATH_PROBES = Limit("quic.path_probes", bytes=12_000)
"""Bytes that may be in flight above the congestion window for probing new paths of the peer."""

_PROBES_BYTES = PATH_PROBES.bytes or 0

_TIMED_OUT = (QuicErrorCode.INTERNAL_ERROR, "Idle timeout")


class _NullEngineCallbacks:
    """Callbacks of a discarded connection: do nothing."""

    def on_work(self) -> None: ...

    def on_established(self) -> None: ...

    def on_peer_stream(self, stream: Stream) -> StreamHandler | None: ...

    def on_stream_credit(self) -> None: ...

    def on_connection_id(self, connection_id: bytes) -> None: ...

    def on_connection_id_retired(self, connection_id: bytes) -> None: ...

    def on_closed(self, error: ConnectionClosedError) -> None: ...


class AioquicEngine(OneRttConnection):
    """Implements `Engine`."""

    def __init__(
        self,
        owner: EngineCallbacks,
        settings: QuicSettings,
        configuration: QuicConfiguration,
        original_destination_connection_id: bytes | None = None,
    ) -> None:
        super().__init__(settings, configuration, original_destination_connection_id)
        self._owner = owner
        self.anchors: tuple[x509.Certificate, ...] = ()
        """Trust anchors of a client."""
        self.server_name: str | None = configuration.server_name
        self._reset_token: Callable[[bytes], bytes] | None = None
        self._cid_prefix = b""
        self._established_told = False
        self._closed_told = False
        self._error: ConnectionClosedError | None = None
        self._keepalive_at: float | None = None
        self._deadline: float | None = None
        self._deadline_known = False
        self._close_packets: list[tuple[bytes, Address]] = []
        """Datagrams with our CONNECTION_CLOSE, kept to repeat them to a peer that continues to send."""
        self._late_packets = 0
        self._repeat_farewell = False

    # --- properties --------------------------------------------------------------------------------------------------

    @property
    def peer_address(self) -> Address:
        """See `Engine`."""
        return self._network_paths[0].addr  # type: ignore[no-any-return]

    @property
    def established(self) -> bool:
        """See `Engine`."""
        return self._handshake_complete

    @property
    def authenticated(self) -> bool:
        """Whether a packet of the peer was decrypted."""
        return self._state is not QuicConnectionState.FIRSTFLIGHT

    @property
    def closed(self) -> bool:
        """See `Engine`."""
        return self._close_event is not None or (self._state is not _CONNECTED and self._state in END_STATES)

    @property
    def finished(self) -> bool:
        """See `Engine`."""
        return self._state is QuicConnectionState.TERMINATED and self._closed_told

    @property
    def free_streams(self) -> int:
        """See `Engine`."""
        return 0 if self.closed else super().free_streams

    @property
    def open_streams(self) -> int:
        """See `Engine`."""
        return len(self.streams)

    @property
    def smoothed_rtt_ms(self) -> float:
        """See `Engine`."""
        return self._loss._rtt_smoothed * 1000

    # --- datagrams and time ------------------------------------------------------------------------------------------

    def receive(self, data: bytes, address: Address, now: float) -> None:
        """See `Engine`."""
        self._now = now
        self.poll_scheduled = True
        if data and data[0] & 0xC0 == 0x40 and self._receive_fast(data, address, now):
            return
        self.quiescent = False
        if self._state is QuicConnectionState.CLOSING:
            # RFC 9000 section 10.2.1: repeat CONNECTION_CLOSE after 1, 2, 4, 8, ... packets.
            self._late_packets += 1
            self._repeat_farewell = self._late_packets & (self._late_packets - 1) == 0
            return
        paths = self._network_paths
        path = paths[0] if paths else None
        self.receive_datagram(data, address, now)
        if path is not None and self._network_paths[0] is not path:
            # The peer has migrated. Packets in flight to the old address are probably lost and fill the congestion window, so
            # validate the new path with a probe packet now, without regard to the window, instead of waiting for the probe
            # timeout (RFC 9000 section 9.4). `_PROBES_BYTES` bounds this for a peer that migrates with every packet.
            congestion = self._loss._cc
            self._probe_pending = congestion.bytes_in_flight < congestion.congestion_window + _PROBES_BYTES

    def poll(self, now: float) -> list[tuple[bytes, Address]]:
        """See `Engine`."""
        self._now = now
        self.poll_scheduled = False
        if self.quiescent and not (self.sending or self.control or self.ready):
            return []
        self.quiescent = False
        if self._state is not _CONNECTED and self._state in END_STATES:
            if self._repeat_farewell:
                self._repeat_farewell = False
                return self._close_packets
            return []
        self._deadline_known = False
        ordinary = self._ordinary()
        if ordinary:
            datagrams = self._poll_fast(now)
        else:
            closing = self._close_pending
            datagrams = self.datagrams_to_send(now)
            if closing:
                self._close_packets = datagrams
        if self.path_mtu.probe_at is not None:
            probe_at = self._probe_path_at()
            if probe_at is not None and probe_at <= now:
                datagrams.append(self._probe_path(now))
        if self._events:
            self._take_events()
        if self.ready and not self.poll_scheduled:
            # Sending has reduced a full send buffer: call `on_writable` of its handler.
            self.schedule_poll()
        else:
            self.quiescent = ordinary and not self._has_frames()
        return datagrams

    def deadline(self) -> float | None:
        """See `Engine`."""
        if self._deadline_known and self.quiescent:
            return self._deadline
        self._deadline_known = True
        self._deadline = self._next_deadline()
        return self._deadline

    def _next_deadline(self) -> float | None:
        if not self._handshake_confirmed or self._state is not _CONNECTED or not self._network_paths[0].is_validated:
            return self.get_timer()
        at = self._timer()
        if self._keepalive_at is not None and self._keepalive_at < at:
            at = self._keepalive_at
        if self.path_mtu.probe_at is not None:
            probe_at = self._probe_path_at()
            if probe_at is not None and probe_at < at:
                at = probe_at
        return at

    def handle_timer(self, now: float) -> None:
        """See `Engine`."""
        self._now = now
        self.poll_scheduled = True
        self.quiescent = False
        if self._close_at is None:
            return
        super().handle_timer(now)
        if self._state in END_STATES:
            return
        self._idle_s = self._idle_timeout()
        unanswered = self._loss._pto_count
        if unanswered >= _PTOS_BEFORE_SMALL_DATAGRAMS and self._max_datagram_size > BASE_BYTES:
            self._use_small_datagrams(now)
        limit = self.settings.max_consecutive_ptos
        if limit and unanswered > limit and self._handshake_confirmed:
            self.abandon(ConnectionClosedError(None, "peer does not answer", by_peer=False))
        elif self._keepalive_at is not None and now >= self._keepalive_at:
            last_received_at = self._app_space.largest_received_time
            self._plan_keepalive(now if last_received_at is None else last_received_at)
            if now >= self._keepalive_at:
                self.ping()
                self._plan_keepalive(now)

    def datagram_refused(self, size: int, now: float) -> None:
        """See `Engine`. Loss recovery handles the loss; a refused MTU probe does not reduce the datagram size."""
        if BASE_BYTES < size <= self._max_datagram_size:
            self._use_small_datagrams(now)

    def _use_small_datagrams(self, now: float) -> None:
        self.path_mtu.black_hole(now)
        self._use_datagram_size(BASE_BYTES)

    def ping(self) -> None:
        """See `Engine`."""
        self._ping_pending.append(0)
        self.quiescent = False
        if not self.poll_scheduled:
            self.schedule_poll()

    # --- calling back ------------------------------------------------------------------------------------------------

    def schedule_poll(self) -> None:
        """Schedule a `poll`; streams call this at most once before the next `poll`."""
        self.poll_scheduled = True
        self._owner.on_work()

    def open_stream(self, handler: StreamHandler) -> BidirectionalStream | None:
        """See `Engine`."""
        if self.closed:
            return None
        return super().open_stream(handler)

    def deliver(self) -> None:
        """See `Engine`."""
        self.poll_scheduled = True
        if self._events:
            self._take_events()
        if self._handshake_complete and not self._established_told and not self.closed:
            self._established_told = True
            self._owner.on_established()
        if self._unaccepted:
            self._introduce()
        ready = self.ready
        while ready:
            batch = list(ready)
            ready.clear()
            for stream in batch:
                try:
                    stream.deliver()
                except Exception:  # noqa: BLE001 - an error in a handler ends its stream only
                    _log.exception("stream handler failed", stream_id=stream.stream_id)
                    stream.refuse()
        if self._credit_raised and self._established_told:
            self._credit_raised = False
            self._owner.on_stream_credit()
        if not self._closed_told and self.closed:
            self._notify_closed()

    def _introduce(self) -> None:
        arrived, self._unaccepted = self._unaccepted, []
        for stream in arrived:
            handler = self._owner.on_peer_stream(stream)
            if handler is None:
                stream.refuse()
            else:
                stream.attach(handler)

    def _take_events(self) -> None:
        """Process aioquic's events: connection ids and the end of the handshake; the connection's state gives the rest."""
        while self._events:
            event = self._events.popleft()
            if isinstance(event, events.ConnectionIdIssued):
                self._owner.on_connection_id(event.connection_id)
            elif isinstance(event, events.ConnectionIdRetired):
                self._owner.on_connection_id_retired(event.connection_id)
            elif isinstance(event, events.HandshakeCompleted):
                self.path_mtu.start(self._now, self._peer_max_udp_payload)
                self._plan_keepalive(self._now)

    def _plan_keepalive(self, now: float) -> None:
        if self.settings.keepalive_ms:
            self._keepalive_at = now + self.settings.keepalive_ms / 1000

    # --- the end -----------------------------------------------------------------------------------------------------

    def shutdown(self, error_code: int, reason: str) -> None:
        """See `Engine`."""
        if self.closed:
            return
        self._error = ConnectionClosedError(error_code, reason, by_peer=False)
        self.quiescent = False
        self.close(error_code=error_code, reason_phrase=reason)
        if not self.poll_scheduled:
            self.schedule_poll()

    def abandon(self, error: ConnectionClosedError) -> None:
        """See `Engine`."""
        if self._state is QuicConnectionState.TERMINATED:
            return
        if self._error is None:
            self._error = error
        if self._close_event is None:
            self._close_event = events.ConnectionTerminated(
                error_code=QuicErrorCode.NO_ERROR, frame_type=None, reason_phrase=error.reason
            )
        self._close_pending = False
        self.quiescent = False
        self._close_end()

    def discard(self) -> None:
        """See `Engine`. The owner gets no more callbacks."""
        super().discard()
        self._owner = _NullEngineCallbacks()
        self._reset_token = None

    def _notify_closed(self) -> None:
        self._closed_told = True
        error = self._error or self._why_closed()
        streams = list(self.streams.values())
        self.streams.clear()
        for registry in (self.sending, self.control, self.ready, self._connection_blocked):
            registry.clear()
        self._unaccepted.clear()
        for stream in streams:
            try:
                stream.connection_lost(error)
            except Exception:  # noqa: BLE001 - the other streams are notified all the same
                _log.exception("stream handler failed", stream_id=stream.stream_id)
        self._owner.on_closed(error)

    def _why_closed(self) -> ConnectionClosedError:
        event = self._close_event
        assert event is not None  # noqa: S101 - every way to an end state sets it
        code, reason = event.error_code, event.reason_phrase
        by_peer = self._state is QuicConnectionState.DRAINING
        if (code, reason) == _TIMED_OUT:
            return ConnectionClosedError(None, "idle timeout", by_peer=False)
        if code == QuicErrorCode.NO_VIABLE_PATH and not by_peer:
            return ConnectionClosedError(None, "no validated network path", by_peer=False)
        return ConnectionClosedError(int(code), reason, by_peer=by_peer)

    def _anchors_for(self, leaf: x509.Certificate | None, chain: list[x509.Certificate]) -> bytes:
        """The trust anchors (PEM) that issued one of the server's certificates, or that equal its leaf.

        OpenSSL finds an anchor by its subject, but a bundle can hold several anchors with one subject while identities are rotated.
        """
        anchors = [anchor for anchor in self.anchors if anchor == leaf]
        if leaf is not None and not anchors:
            anchors = [anchor for anchor in self.anchors if any(_issued(anchor, one) for one in (leaf, *chain))]
        return b"".join(anchor.public_bytes(Encoding.PEM) for anchor in anchors)

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

    def is_reset(self, data: bytes) -> bool:
        """See `Engine`."""
        token = self._peer_cid.stateless_reset_token
        return len(token) == RESET_TOKEN_BYTES and hmac.compare_digest(token, data[-RESET_TOKEN_BYTES:])

    def _replenish_connection_ids(self) -> None:
        super()._replenish_connection_ids()
        prefix = self._cid_prefix
        if self._reset_token is not None:
            for connection_id in self._host_cids:
                if not connection_id.was_sent:
                    connection_id.cid = prefix + connection_id.cid[len(prefix) :]
                    connection_id.stateless_reset_token = self._reset_token(connection_id.cid)

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


def _issued(issuer: x509.Certificate, certificate: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True
