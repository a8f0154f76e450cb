"""A QUIC connection from the complete handshake on: the only reader and writer of 1-RTT packets. Sans-I/O.

This is the whole of RFC 9000 after the handshake, with loss recovery (RFC 9002) and key updates (RFC 9001 section 6), put
together from the parts in the modules beside it. Times are seconds of the caller's monotonic clock.
"""

from enum import IntEnum
from typing import Final

import structlog
from cryptography.exceptions import InvalidTag

from tunnel_protocol.errors import ConnectionClosedError
from tunnel_protocol.quic.closing import close_frame
from tunnel_protocol.quic.congestion import Congestion
from tunnel_protocol.quic.connection_callbacks import ConnectionCallbacks, NullEngineCallbacks
from tunnel_protocol.quic.connection_frames import ConnectionFrames
from tunnel_protocol.quic.connection_ids import LocalConnectionIds, PeerConnectionIds
from tunnel_protocol.quic.datagrams import Run
from tunnel_protocol.quic.engine import Address, EngineCallbacks
from tunnel_protocol.quic.frame_delivery import FrameDelivery
from tunnel_protocol.quic.frame_reader import FrameReader
from tunnel_protocol.quic.hand_over import HandOver
from tunnel_protocol.quic.key_phases import KeyPhases
from tunnel_protocol.quic.loss_recovery import LossRecovery
from tunnel_protocol.quic.packet_protection import PacketProtection
from tunnel_protocol.quic.packet_writer import PacketWriter
from tunnel_protocol.quic.packets import HEADER_BYTES, SMALLEST_PACKET_BYTES, Ack
from tunnel_protocol.quic.path_mtu import BASE_BYTES, PathMtu
from tunnel_protocol.quic.paths import Path, Paths
from tunnel_protocol.quic.qlog import PacketLog
from tunnel_protocol.quic.received_packets import ReceivedPackets
from tunnel_protocol.quic.sent_packet import SentPacket
from tunnel_protocol.quic.settings import QuicSettings
from tunnel_protocol.quic.stream_interface import Stream, StreamHandler
from tunnel_protocol.quic.stream_table import StreamTable
from tunnel_protocol.quic.transport_error import ErrorCode, TransportError

try:
    from tunnel_protocol.quic.packet_speedups import open_packet
except ImportError:
    from tunnel_protocol.quic.packets import open_packet

_log = structlog.get_logger()

_NEVER: Final[float] = float("inf")
_PTOS_BEFORE_SMALL_DATAGRAMS: Final = 3
"""After this many consecutive probe timeouts the datagram size falls back to 1,200 bytes (RFC 8899 section 4.3)."""


class ConnectionState(IntEnum):
    """States of a connection after the handshake (RFC 9000 section 10); a state never goes back."""

    CONNECTED = 0
    CLOSING = 1
    """CONNECTION_CLOSE is, or will be, sent, and is repeated to a peer that continues to send (section 10.2.1)."""

    DRAINING = 2
    """The peer has closed; nothing is sent (section 10.2.2)."""

    TERMINATED = 3


# Bound once: looking a member up in its enum takes as long as ten such comparisons (Python 3.11).
_CONNECTED: Final = ConnectionState.CONNECTED
_CLOSING: Final = ConnectionState.CLOSING
_DRAINING: Final = ConnectionState.DRAINING
_TERMINATED: Final = ConnectionState.TERMINATED


class OneRttConnection(ConnectionCallbacks):
    """See `Engine` for the methods of the same names."""

    def __init__(self, made: HandOver, settings: QuicSettings, owner: EngineCallbacks, now: float) -> None:
        peer = made.parameters
        self._owner: EngineCallbacks = owner
        self._settings = settings
        self._is_client = made.is_client
        self._now: float = now
        self._state = _CONNECTED
        self._host_cid = made.local_cid
        """The connection id of ours that the peer used last."""
        self._peer_max_udp_payload = peer.max_udp_payload_bytes
        self._ack_delay_exponent = peer.ack_delay_exponent
        self.table = StreamTable(made.is_client, settings, peer.limits, self)
        self.congestion = Congestion(BASE_BYTES)
        self.recovery = LossRecovery(self.congestion, peer.max_ack_delay_ms / 1000, confirmed=not made.is_client)
        if made.rtt_s:
            self.recovery.use_handshake_sample(made.rtt_s, made.rtt_variance_s, now)
        ack_after_bytes = settings.ack_every * BASE_BYTES
        self.received = ReceivedPackets(
            ack_after_bytes=ack_after_bytes,
            least_counted_bytes=ack_after_bytes // (8 * settings.ack_every),
            ack_delay_s=settings.ack_delay_ms / 1000,
        )
        self.keys = KeyPhases(
            PacketProtection(made.suite, made.opening_secret, opens=True),
            PacketProtection(made.suite, made.sealing_secret, opens=False),
        )
        self.local_cids = LocalConnectionIds(made.local_cid, peer.active_connection_id_limit, made.make_cid)
        self.peer_cids = PeerConnectionIds(made.peer_cid)
        self.connection_frames = ConnectionFrames(
            self.local_cids, self.peer_cids, made.reset_token, handshake_done=not made.is_client
        )
        self.paths = Paths(Path(made.address, is_validated=True), self.peer_cids)
        self.path_mtu = PathMtu(settings.max_datagram_bytes)
        self._delivery = FrameDelivery(self.table, self.received, self.connection_frames, self.paths, self.path_mtu)
        self._reader = FrameReader(made.is_client, self.table, self.local_cids, self.peer_cids, self.paths, self)
        self.writer = PacketWriter(
            self.keys,
            self.recovery,
            self.received,
            self.table,
            self.connection_frames,
            self.peer_cids,
            self.paths,
            self.path_mtu,
        )
        self._log: PacketLog | None = None if made.trace is None else PacketLog(made.trace)
        self.writer.log = self._log
        idle = [ms for ms in (settings.idle_timeout_ms, peer.max_idle_timeout_ms) if ms]
        self._least_idle_s: float = min(idle) / 1000 if idle else _NEVER
        self._idle_s: float = self._idle_timeout()
        self._idle_at: float = now + self._idle_s
        """When the connection ends without a sign of the peer; in a closing or draining state, when that ends."""
        self._eliciting_since_receipt = False
        """Whether an ack-eliciting packet was sent since the last one was received (RFC 9000 section 10.1)."""
        self._keepalive_at: float = now + settings.keepalive_ms / 1000 if settings.keepalive_ms else _NEVER
        self._deadline: float = 0.0
        self._deadline_known = False
        self.quiescent = False
        """True if the last `poll` left nothing to send and only stream data arrived since: no deadline has become earlier."""
        self._ids_due = True
        self._retired_ids: list[bytes] = []
        self._established_reported = False
        self._closed_reported = False
        self._error: ConnectionClosedError | None = None
        self._close_frame = b""
        """The CONNECTION_CLOSE frame to send; empty if none is to be sent."""
        self._close_packet: Run | None = None
        self._late_packets = 0
        """Packets received in the closing state."""
        self._repeat_close = False

    # --- properties --------------------------------------------------------------------------------------------------

    @property
    def peer_address(self) -> Address:
        """See `Engine`."""
        return self.paths.active.address

    @property
    def confirmed(self) -> bool:
        """Whether the handshake is confirmed (RFC 9001 section 4.1.2)."""
        return self.recovery.confirmed

    @property
    def closed(self) -> bool:
        """See `Engine`."""
        return self._state is not _CONNECTED

    @property
    def finished(self) -> bool:
        """See `Engine`."""
        return self._state is _TERMINATED and self._closed_reported

    # --- receiving ---------------------------------------------------------------------------------------------------

    def receive(self, data: bytes, address: Address, now: float) -> None:
        """Process one datagram with a short header packet."""
        self._now = now
        self.table.poll_scheduled = True
        if self._state is not _CONNECTED:
            self._receive_late()
            return
        path = self.paths.active
        if len(data) < SMALLEST_PACKET_BYTES:
            return
        cid_changed = data[1:HEADER_BYTES] != self._host_cid
        if cid_changed and data[1:HEADER_BYTES] not in self.local_cids.active:
            return
        if path.address != address:
            known = self._other_path(address)
            if known is None:
                return
            path = known
        if not path.is_validated:
            path.bytes_received += len(data)
            self.quiescent = False
        try:
            self._receive_packet(data, path, cid_changed, now)
        except TransportError as error:
            _log.debug("peer violated the protocol", error=error.reason)
            self._close_with(error.error_code, error.frame_type, error.reason)

    def _other_path(self, address: Address) -> Path | None:
        """The path of a datagram from another address than the active one; None if it is to be dropped."""
        known = self.paths.known(address)
        if known is None and self._is_client:
            # RFC 9000 section 9: only clients migrate.
            if self._log is not None:
                self._log.dropped("unknown_server_address", 0)
            return None
        # A new path is kept only when a packet from it was opened, see `_receive_packet`.
        return known or Path(address)

    def _receive_packet(self, data: bytes, path: Path, cid_changed: bool, now: float) -> None:
        received, keys = self.received, self.keys
        try:
            opened = open_packet(data, keys.opens, keys.phase, received.expected)
        except InvalidTag:
            keys.not_opened()
            return
        if opened is None:
            opened = self._open_unusual(data)
            if opened is None:
                return
        elif keys.just_updated:
            keys.opened(opened[0])
        number: int = opened[0]
        payload: bytes = opened[1]
        if not received.is_new(number):
            return
        if self._log is not None:
            self._log.received(number, payload, len(data))
        moved = cid_changed or path is not self.paths.active
        newest = number >= received.expected
        if moved and self.paths.known(path.address) is None:
            path = self.paths.add(path.address)
            path.bytes_received = len(data)
        eliciting = self._reader.read(payload, path, data[1:HEADER_BYTES], now)
        if self._reader.peer_close is not None or self._reader.handshake_done:
            self._on_rare_frames()
            if self._state is not _CONNECTED:
                return
        self._idle_at = now + self._idle_s
        self._eliciting_since_receipt = False
        if received.on_packet_received(number, now, len(data) if eliciting else 0) or self.paths.busy:
            self.quiescent = False
        if moved and not (self._is_client or self._reader.probing):
            self._on_peer_moved(path, data[1:HEADER_BYTES], newest)

    def _open_unusual(self, data: bytes) -> tuple[int, bytes] | None:
        """A packet of another key phase or with reserved bits; None if no key opens it."""
        keys = self.keys
        phase = keys.phase
        opened = keys.open_unusual(data, self.received.expected, self.writer.next_number)
        if keys.phase != phase:
            self.quiescent = False
            if self._log is not None:
                self._log.key_updated(keys.phase)
        return opened

    def _on_rare_frames(self) -> None:
        reader = self._reader
        if reader.handshake_done and not self.recovery.confirmed:
            self.recovery.confirmed = True
            self.quiescent = False
        reader.handshake_done = False
        close, reader.peer_close = reader.peer_close, None
        if close is not None:
            self._end(_DRAINING, ConnectionClosedError(close.error_code, close.reason, by_peer=True))

    def _on_peer_moved(self, path: Path, used_cid: bytes, newest: bool) -> None:
        """A packet that does more than probe came from another address or to another connection id (RFC 9000 section 9)."""
        self.quiescent = False
        if used_cid != self._host_cid:
            self._host_cid = used_cid
            if path.peer_cid is None:
                # RFC 9000 section 9.5: what the peer does against linking its paths is of use only if we do it too.
                self.peer_cids.change()
        if path is self.paths.active or not newest:
            return
        same_host = path.address[0] == self.paths.active.address[0]
        self.paths.promote(path)
        if not same_host:
            # RFC 9000 section 9.4; another port alone is a NAT that has forgotten.
            self.path_mtu.start(self._now, self._peer_max_udp_payload)
            self._follow_path_mtu()
            self.recovery.leave_path(self.writer.next_number)

    def _receive_late(self) -> None:
        if self._state is _CLOSING:
            # RFC 9000 section 10.2.1: repeat CONNECTION_CLOSE after 1, 2, 4, 8, ... packets.
            self._late_packets += 1
            if self._late_packets & (self._late_packets - 1) == 0:
                self._repeat_close = True
                self.quiescent = False

    # --- ConnectionCallbacks -----------------------------------------------------------------------------------------

    def schedule_poll(self) -> None:
        """See `ConnectionCallbacks`."""
        self.table.poll_scheduled = True
        self._owner.on_work()

    def on_local_id_retired(self, cid: bytes) -> None:
        """See `ConnectionCallbacks`."""
        self._retired_ids.append(cid)
        self._ids_due = True

    def on_ack_frame(self, ack: Ack, now: float) -> None:
        """See `ConnectionCallbacks`."""
        largest, delay, ranges, _ = ack
        if largest >= self.writer.next_number:
            raise TransportError(ErrorCode.PROTOCOL_VIOLATION, 0x02, "Acknowledgement of a packet never sent")
        if ranges[-1][0] < 0:
            raise TransportError(ErrorCode.FRAME_ENCODING_ERROR, 0x02, "Negative packet number")
        self.quiescent = False
        recovery = self.recovery
        acked = recovery.on_ack(largest, ranges, (delay << self._ack_delay_exponent) / 1_000_000, now)
        if not acked:
            return
        recovery.confirmed = True  # RFC 9001 section 4.1.2: the server has the keys, so it has the whole handshake
        self._delivery.on_acked(acked, now)
        oldest = next(iter(recovery.sent), None)
        if oldest is not None and oldest < recovery.largest_acked:
            self._on_lost(recovery.detect_lost(acked, now))
        else:
            recovery.loss_at = None
            recovery.note_acked(acked)
        self._follow_path_mtu()
        if self._log is not None:
            congestion = self.congestion
            self._log.metrics(congestion.window, congestion.in_flight, recovery.smoothed * 1000, recovery.pto_count)

    # --- sending -----------------------------------------------------------------------------------------------------

    def poll(self, now: float) -> list[Run]:
        """See `Engine`."""
        self._now = now
        table = self.table
        table.poll_scheduled = False
        if self.quiescent and not (table.ready or table.has_frames()):
            return []
        self.quiescent = False
        if self._ids_due:
            self._report_ids()
        if self._state is not _CONNECTED:
            return self._poll_closing()
        self._deadline_known = False
        runs: list[Run] = []
        writer = self.writer
        if self.paths.busy:
            writer.write_path_frames(now, runs)
        writer.write(now, runs)
        probe_at = self.path_mtu.probe_at
        if probe_at is not None and probe_at <= now and self._may_probe_mtu():
            writer.write_mtu_probe(now, runs)
        if writer.sent_eliciting:
            writer.sent_eliciting = False
            if not self._eliciting_since_receipt:
                self._eliciting_since_receipt = True
                self._idle_at = now + self._idle_s
        if table.ready and not table.poll_scheduled:
            # Sending has reduced a full send buffer: call `on_writable` of its handler.
            self.schedule_poll()
        else:
            self.quiescent = not (writer.has_frames() or self.paths.busy)
        return runs

    def _may_probe_mtu(self) -> bool:
        return self.recovery.confirmed and self.paths.active.is_validated

    def _report_ids(self) -> None:
        """Report connection ids that are new or were retired to the owner, who routes datagrams by them."""
        self._ids_due = False
        owner = self._owner
        retired, self._retired_ids = self._retired_ids, []
        for cid in retired:
            owner.on_connection_id_retired(cid)
        for cid in self.local_cids.issue():
            owner.on_connection_id(cid)

    def _poll_closing(self) -> list[Run]:
        if self._state is not _CLOSING:
            return []
        if self._close_frame:
            self._close_packet = self.writer.untracked(self._close_frame)
            self._close_frame = b""
            self._repeat_close = True
        if not self._repeat_close or self._close_packet is None:
            return []
        self._repeat_close = False
        return [self._close_packet]

    # --- time --------------------------------------------------------------------------------------------------------

    def deadline(self) -> float | None:
        """See `Engine`."""
        if not (self._deadline_known and self.quiescent):
            self._deadline = self._next_deadline()
            self._deadline_known = True
        return None if self._deadline == _NEVER else self._deadline

    def _next_deadline(self) -> float:
        if self._state is _TERMINATED:
            return _NEVER
        at: float = self._idle_at
        if self._state is not _CONNECTED:
            return at
        path = self.paths.active
        if not path.is_validated:
            if path.validation_deadline is not None and path.validation_deadline < at:
                at = path.validation_deadline
            if self.writer.blocked():
                return at  # RFC 9002 section 6.2.2.1: what could not be sent then has no timer
        ack_at = self.received.ack_at
        if ack_at is not None and ack_at < at:
            at = ack_at
        loss_at = self.recovery.deadline()
        if loss_at is not None and loss_at < at:
            at = loss_at
        pacing_at = self.writer.pacing_at
        if pacing_at is not None and pacing_at < at:
            at = pacing_at
        if self._keepalive_at < at:
            at = self._keepalive_at
        probe_at = self.path_mtu.probe_at
        if probe_at is not None and probe_at < at and self._may_probe_mtu():
            at = probe_at
        return at

    def handle_timer(self, now: float) -> None:
        """See `Engine`."""
        self._now = now
        self.table.poll_scheduled = True
        self.quiescent = False
        if self._state is _TERMINATED:
            return
        if now >= self._idle_at:
            self._end(_TERMINATED, ConnectionClosedError(None, "idle timeout", by_peer=False))
            return
        if self._state is not _CONNECTED:
            return
        recovery = self.recovery
        loss_at = recovery.deadline()
        if loss_at is not None and now >= loss_at:
            self._on_loss_timeout(now)
        path = self.paths.active
        failed_at = None if path.is_validated else path.validation_deadline
        if failed_at is not None and now >= failed_at and not self.paths.restore():
            self._end(_TERMINATED, ConnectionClosedError(None, "no validated network path", by_peer=False))
            return
        self._idle_s = self._idle_timeout()
        limit = self._settings.max_consecutive_ptos
        if limit and recovery.pto_count > limit:
            self._end(_TERMINATED, ConnectionClosedError(None, "peer does not answer", by_peer=False))
        elif now >= self._keepalive_at:
            self._plan_keepalive(now)

    def _on_loss_timeout(self, now: float) -> None:
        recovery = self.recovery
        self._on_lost(recovery.on_timeout(now))
        if recovery.probes_due:
            # RFC 9002 section 6.2.4: a probe carries what was not acknowledged for the longest time.
            for packet in list(recovery.sent.values())[: recovery.probes_due]:
                self._delivery.send_again(packet, now)
            if recovery.pto_count >= _PTOS_BEFORE_SMALL_DATAGRAMS and self.path_mtu.current > BASE_BYTES:
                self.path_mtu.black_hole(now)
                self._follow_path_mtu()

    def _plan_keepalive(self, now: float) -> None:
        """Send a PING unless something was received meanwhile."""
        keepalive_s: float = self._settings.keepalive_ms / 1000
        if self.received.largest_at + keepalive_s <= now:
            self.ping()
            self._keepalive_at = now + keepalive_s
        else:
            self._keepalive_at = self.received.largest_at + keepalive_s

    def _idle_timeout(self) -> float:
        """RFC 9000 section 10.1."""
        return max(self._least_idle_s, 3 * self.recovery.pto_s())

    # --- datagram size and losses ------------------------------------------------------------------------------------

    def _on_lost(self, lost: list[SentPacket]) -> None:
        if not lost:
            return
        self._delivery.on_lost(lost, self._now)
        if self._log is not None:
            self._log.lost(lost)
        self._follow_path_mtu()

    def datagram_refused(self, size: int, now: float) -> None:
        """See `Engine`. Loss recovery handles the loss; a refused MTU probe does not reduce the datagram size."""
        if BASE_BYTES < size <= self.path_mtu.current:
            self.path_mtu.black_hole(now)
            self._follow_path_mtu()

    def _follow_path_mtu(self) -> None:
        if self.path_mtu.current != self.congestion.datagram_bytes:
            self.congestion.use_datagram_bytes(self.path_mtu.current)

    # --- from the owner ----------------------------------------------------------------------------------------------

    def open_stream(self, handler: StreamHandler) -> Stream | None:
        """See `Engine`."""
        return None if self._state is not _CONNECTED else self.table.open(handler)

    def ping(self) -> None:
        """See `Engine`."""
        self.connection_frames.ping = True
        self.quiescent = False
        if not self.table.poll_scheduled:
            self.schedule_poll()

    def probe(self) -> None:
        """Send a packet without regard to the congestion window, because a packet of the handshake was not acknowledged.

        Before the handshake is confirmed there are no probe timeouts, but a server that has completed it only knows this connection.
        """
        self.quiescent = False
        self.recovery.probes_due = max(1, self.recovery.probes_due)

    def deliver(self) -> None:
        """See `Engine`."""
        table, owner = self.table, self._owner
        table.poll_scheduled = True
        if not self._established_reported and self._state is _CONNECTED:
            self._established_reported = True
            self.path_mtu.start(self._now, self._peer_max_udp_payload)
            owner.on_established()
        if table.unaccepted:
            self._introduce(owner)
        ready = table.ready
        while ready:
            batch = list(ready)
            ready.clear()
            for stream in batch:
                try:
                    stream.deliver()
                except Exception:  # noqa: BLE001 - an error in a handler ends its stream only
                    _log.exception("stream handler failed", stream_id=stream.stream_id)
                    stream.refuse()
        if table.credit_raised and self._established_reported:
            table.credit_raised = False
            owner.on_stream_credit()
        if not self._closed_reported and self._state is not _CONNECTED:
            self._notify_closed(owner)

    def _introduce(self, owner: EngineCallbacks) -> None:
        arrived, self.table.unaccepted = self.table.unaccepted, []
        for stream in arrived:
            handler = owner.on_peer_stream(stream)
            if handler is None:
                stream.refuse()
            else:
                stream.attach(handler)

    # --- the end -----------------------------------------------------------------------------------------------------

    def shutdown(self, error_code: int, reason: str) -> None:
        """See `Engine`; only for a connection that is not closed."""
        self._close_frame = close_frame(error_code, None, reason)
        self._end(_CLOSING, ConnectionClosedError(error_code, reason, by_peer=False))
        if not self.table.poll_scheduled:
            self.schedule_poll()

    def _close_with(self, error_code: int, frame_type: int, reason: str) -> None:
        """Close because of an error of the peer."""
        self._close_frame = close_frame(error_code, frame_type, reason)
        self._end(_CLOSING, ConnectionClosedError(error_code, reason, by_peer=False))

    def abandon(self, error: ConnectionClosedError) -> None:
        """See `Engine`."""
        self._end(_TERMINATED, error)

    def _end(self, state: ConnectionState, error: ConnectionClosedError) -> None:
        """Go to a later state; the first error stays."""
        if self._state >= state:
            return
        if self._error is None:
            self._error = error
        self._state = state
        self.quiescent = False
        self._idle_at = self._now + 3 * self.recovery.pto_s()
        if state is _TERMINATED:
            self._close_frame = b""
            self.recovery.forget()
            if self._log is not None:
                self._log.closed(self._error.reason)
                self._log = self.writer.log = None

    def is_reset(self, data: bytes) -> bool:
        """See `Engine`."""
        return self.peer_cids.is_reset(data)

    def discard(self) -> None:
        """See `Engine`. The owner gets no more callbacks."""
        self._owner = NullEngineCallbacks()
        self._reader.close()
        self.recovery.forget()
        self.table.close()

    def _notify_closed(self, owner: EngineCallbacks) -> None:
        self._closed_reported = True
        error = self._error
        assert error is not None  # noqa: S101 - every way to a later state sets it
        for stream in self.table.close():
            try:
                stream.connection_lost(error)
            except Exception:  # noqa: BLE001 - the other streams are notified all the same
                _log.exception("stream handler failed", stream_id=stream.stream_id)
        owner.on_closed(error)
