"""Builds and protects 1-RTT packets; the only writer of their packet number space (RFC 9000 sections 12 to 14)."""

from typing import Final

from tunnel_protocol.limit import Limit
from tunnel_protocol.quic.congestion import Congestion
from tunnel_protocol.quic.connection_frames import ConnectionFrames
from tunnel_protocol.quic.connection_ids import PeerConnectionIds
from tunnel_protocol.quic.datagrams import Run
from tunnel_protocol.quic.engine import MIN_INITIAL_BYTES
from tunnel_protocol.quic.key_phases import KEY_UPDATE_PACKETS, KeyPhases
from tunnel_protocol.quic.loss_recovery import INITIAL_RTT_S, MAX_PACKETS_IN_FLIGHT, LossRecovery
from tunnel_protocol.quic.pacer import Pacer
from tunnel_protocol.quic.packets import run_frame
from tunnel_protocol.quic.path_mtu import BASE_BYTES, PathMtu
from tunnel_protocol.quic.paths import Path, Paths
from tunnel_protocol.quic.qlog import PacketLog
from tunnel_protocol.quic.received_packets import ReceivedPackets
from tunnel_protocol.quic.sent_packet import ACK, MTU_PROBE, PATH_CHALLENGE, PING, SentFrame, SentPacket
from tunnel_protocol.quic.stream_table import RUN_FRAME_BYTES, StreamTable

try:
    from tunnel_protocol.quic.packet_speedups import seal_packet, seal_run
except ImportError:
    from tunnel_protocol.quic.packets import seal_packet, seal_run

PATH_PROBES: Final = Limit("quic.path_probes", bytes=12_000)
"""Bytes that may be in flight above the congestion window for probing new paths of the peer."""

_PATH_PROBES_BYTES: Final = PATH_PROBES.bytes or 0
_OVERHEAD_BYTES: Final = 1 + 2 + 16
"""Bytes of first byte, packet number and AEAD tag; the peer's connection id is added to this."""

_NO_FRAMES: Final[list[SentFrame]] = []

_SMALLEST_PAYLOAD: Final = 2
"""With the packet number of two bytes, what the sample for header protection needs (RFC 9001 section 5.4.2)."""

_RUN_BYTES: Final = 65_000
"""Bytes of the packets that are sealed together, as many as one datagram could have: the kernel takes them at once."""

_RUN_PACKETS: Final = 64
"""Packets that are sealed together; the kernel takes no more datagrams at once (`UDP_MAX_SEGMENTS` of Linux before 6.9)."""

_LEAST_SPACE: Final = 64
"""Bytes for frames without which no packet is begun on a path that is not validated."""

_PING_WITH_ACKS: Final = 8
"""Every so many packets an ACK of several ranges takes a PING along: once the peer has acknowledged it, old ranges can be
dropped (RFC 9000 section 13.2.4)."""


class PacketWriter:
    """Takes frames from the parts of the connection and makes datagrams of them."""

    __slots__ = (
        "_congestion",
        "_connection_frames",
        "_keys",
        "_mtu",
        "_pacer",
        "_paths",
        "_peer_cids",
        "_received",
        "_recovery",
        "_table",
        "log",
        "next_number",
        "pacing_at",
        "sent_eliciting",
    )

    def __init__(
        self,
        keys: KeyPhases,
        recovery: LossRecovery,
        received: ReceivedPackets,
        table: StreamTable,
        connection_frames: ConnectionFrames,
        peer_cids: PeerConnectionIds,
        paths: Paths,
        mtu: PathMtu,
    ) -> None:
        self._keys = keys
        self._recovery = recovery
        self._congestion: Congestion = recovery.congestion
        self._received = received
        self._table = table
        self._connection_frames = connection_frames
        self._peer_cids = peer_cids
        self._paths = paths
        self._mtu = mtu
        self._pacer = Pacer()
        self.log: PacketLog | None = None
        self.next_number = 0
        """The packet number of the next packet."""
        self.pacing_at: float | None = None
        """When pacing lets the next packet go; None if it holds nothing back."""
        self.sent_eliciting = False
        """Whether an ack-eliciting packet was sent since this was last reset."""

    def has_frames(self) -> bool:
        """Whether there are frames to send, other than ACK and those of paths."""
        return self._table.has_frames() or self._connection_frames.waiting()

    def blocked(self) -> bool:
        """Whether nothing can be sent on the active path, which is not validated, until more arrives (RFC 9000 section 8.1)."""
        return self._paths.active.allowance() < _OVERHEAD_BYTES + len(self._peer_cids.current.cid) + _LEAST_SPACE

    def write(self, now: float, runs: list[Run]) -> None:
        """Append the datagrams that may leave now on the active path."""
        self.pacing_at = None
        recovery = self._recovery
        if not (self.has_frames() or recovery.probes_due or self._received.ack_due(now)):
            return
        path = self._paths.active
        limit = self._mtu.current
        overhead = _OVERHEAD_BYTES + len(self._peer_cids.current.cid)
        self._pacer.refill(now, self._congestion.window, recovery.smoothed, limit)
        while self._write_run(path, limit, overhead, now, runs) or self._write_packet(path, limit, overhead, now, runs):
            if not (self.has_frames() or recovery.probes_due):
                return

    def _write_packet(self, path: Path, limit: int, overhead: int, now: float, runs: list[Run]) -> bool:
        """Append one packet with the frames that wait; False if it is the last one, or none may leave."""
        received = self._received
        space = limit - overhead
        if not path.is_validated:
            space = min(limit, path.allowance()) - overhead
            if space < _LEAST_SPACE:
                return False
        frames: list[SentFrame] = []
        parts: list[bytes] = []
        ack = b""
        ack_due = received.ack_due(now)
        if received.ack_at is not None:
            ack = received.ack_frame(now, space)
            parts.append(ack)
            space -= len(ack)
        if self._recovery.probes_due:
            self._take_probe(space, frames, parts)
        elif self.has_frames():
            self._take_allowed(space, overhead + len(ack), now, frames, parts)
        if not frames:
            if ack_due:
                runs.append((self._send_ack(path, ack, now), 0, path.address))
            return False
        if ack:
            frames.append(SentFrame(ACK, None, received.ranges.stops[-1] - 1))
            received.ack_sent()
        runs.append((self._send(path, b"".join(parts), frames, now), 0, path.address))
        return True

    def _write_run(self, path: Path, limit: int, overhead: int, now: float, runs: list[Run]) -> bool:
        """Append packets that hold data of one stream and nothing else, as many as may leave; False if it is not worth it."""
        keys, recovery, pacer, congestion = self._keys, self._recovery, self._pacer, self._congestion
        if self._received.ack_at is not None or recovery.probes_due or self._connection_frames.waiting():
            return False  # something else has to be in the next packet
        most = min(
            _RUN_PACKETS,
            _RUN_BYTES // limit,
            (congestion.window - congestion.in_flight) // limit,
            MAX_PACKETS_IN_FLIGHT - len(recovery.sent),
            1 + int(pacer.tokens) // limit,
        )
        if most < 2 or not path.is_validated or keys.sealed + most >= KEY_UPDATE_PACKETS:
            return False
        run = self._table.take_run(limit - overhead, most)
        if run is None:
            return False
        stream, number, at = run.stream, self.next_number, run.start
        half = stream.send_half
        index = half.locate(at)
        piece, base = half.pieces[index], half.starts[index]
        sealed: bytes = seal_run(
            0x41 | (keys.phase << 2),
            self._peer_cids.current.cid,
            number,
            stream.id_bytes,
            at,
            piece,
            at - base,
            run.stop - base,
            run.piece_bytes,
            run.fin,
            keys.seals,
        )
        overhead += RUN_FRAME_BYTES + len(stream.id_bytes)
        while at < run.stop:
            stop = min(at + run.piece_bytes, run.stop)
            size = overhead + stop - at
            fin = run.fin and stop == run.stop
            recovery.on_packet_sent(SentPacket(number, now, size, _NO_FRAMES, True, stream, at, stop, fin))
            if self.log is not None:
                data = bytes(piece[at - base : stop - base])
                self.log.sent(number, run_frame(stream.id_bytes, at, data, fin), size)
            number += 1
            at = stop
        keys.sealed += number - self.next_number
        self.next_number = number
        pacer.tokens -= len(sealed)
        self.sent_eliciting = True
        runs.append((sealed, limit, path.address))
        return True

    def _take_probe(self, space: int, frames: list[SentFrame], parts: list[bytes]) -> None:
        """Frames of a packet that a probe timeout asks for, whatever the congestion window is (RFC 9002 section 6.2.4).

        It is small, because the path may have stopped to carry large ones (RFC 8899 section 4.3).
        """
        self._take(space - (self._mtu.current - BASE_BYTES), frames, parts)
        if not frames:
            frames.append(SentFrame(PING))
            parts.append(b"\x01")
        self._recovery.probes_due -= 1

    def _take_allowed(self, space: int, overhead: int, now: float, frames: list[SentFrame], parts: list[bytes]) -> None:
        """Frames of a packet, if congestion window and pacing allow one."""
        congestion = self._congestion
        window = congestion.window - congestion.in_flight
        if window < self._mtu.current >> 1 or len(self._recovery.sent) >= MAX_PACKETS_IN_FLIGHT:
            return
        if self._pacer.tokens > 0:
            self._take(min(space, window - overhead), frames, parts)
        else:
            self.pacing_at = now + self._pacer.wait_s()

    def _send_ack(self, path: Path, ack: bytes, now: float) -> bytes:
        """A packet with an ACK only, or now and then with a PING."""
        received = self._received
        received.ack_sent()
        if len(received.ranges) > 1 and self.next_number % _PING_WITH_ACKS == 0:
            frames = [SentFrame(PING), SentFrame(ACK, None, received.ranges.stops[-1] - 1)]
            return self._send(path, ack + b"\x01", frames, now)
        return self._seal(path, self._peer_cids.current.cid, ack)

    def _take(self, budget: int, frames: list[SentFrame], parts: list[bytes]) -> None:
        if self._connection_frames.waiting():
            budget = self._connection_frames.take(budget, frames, parts)
        self._table.take_frames(budget, frames, parts)

    def write_path_frames(self, now: float, runs: list[Run]) -> None:
        """Append datagrams with PATH_CHALLENGE and PATH_RESPONSE frames, each on its path (RFC 9000 section 8.2).

        They may exceed the congestion window by `PATH_PROBES`: what is in flight to an address that the peer has left fills the
        window, and is never acknowledged (RFC 9000 section 9.4).
        """
        paths = self._paths
        active = paths.active
        self._write_frames_of_path(active, self._peer_cids.current.cid, now, runs)
        for path in paths.others:
            if path.peer_cid is None and (path.challenge_due or path.responses):
                path.peer_cid = self._peer_cids.lend()
            if path.peer_cid is not None:
                # Another connection id on each path, so that paths cannot be linked (RFC 9000 section 9.5).
                self._write_frames_of_path(path, path.peer_cid.cid, now, runs)
        paths.busy = (
            active.challenge_due
            or len(active.responses) > 0
            or any(
                [path.challenge_due or len(path.responses) > 0 for path in paths.others]  # noqa: C419 - compiled, faster
            )
        )

    def _write_frames_of_path(self, path: Path, peer_cid: bytes, now: float, runs: list[Run]) -> None:
        congestion = self._congestion
        overhead = _OVERHEAD_BYTES + len(peer_cid)
        while path.challenge_due or path.responses:
            size = MIN_INITIAL_BYTES
            if not path.is_validated:
                size = min(size, path.allowance())
            if size < overhead + 18 or congestion.in_flight >= congestion.window + _PATH_PROBES_BYTES:
                return
            payload = b""
            frames: list[SentFrame] = [SentFrame(PING)]
            if path.responses:
                payload = b"\x1b" + path.responses.popleft()
            if path.challenge_due:
                payload += b"\x1a" + path.new_challenge()
                frames.append(SentFrame(PATH_CHALLENGE))
                if path.validation_deadline is None:
                    # RFC 9000 section 8.2.4.
                    path.validation_deadline = now + 3 * max(self._recovery.pto_s(), 2 * INITIAL_RTT_S)
            payload += bytes(size - overhead - len(payload))
            runs.append((self._send(path, payload, frames, now, peer_cid), 0, path.address))

    def write_mtu_probe(self, now: float, runs: list[Run]) -> None:
        """Append a PING padded to the probed size; its loss is not a sign of congestion (RFC 9000 section 14.4)."""
        size = self._mtu.next_probe()
        path = self._paths.active
        payload = b"\x01" + bytes(size - _OVERHEAD_BYTES - len(self._peer_cids.current.cid) - 1)
        frames = [SentFrame(MTU_PROBE, None, size)]
        runs.append((self._send(path, payload, frames, now, None, False), 0, path.address))

    def untracked(self, payload: bytes) -> Run:
        """A datagram with this payload to the active path; neither its acknowledgement nor its loss matters."""
        path = self._paths.active
        return self._seal(path, self._peer_cids.current.cid, payload), 0, path.address

    # -----------------------------------------------------------------------------------------------------------------

    def _send(
        self,
        path: Path,
        payload: bytes,
        frames: list[SentFrame],
        now: float,
        peer_cid: bytes | None = None,
        in_flight: bool = True,
    ) -> bytes:
        """Protect an ack-eliciting packet and remember it."""
        if len(payload) < _SMALLEST_PAYLOAD:
            payload += b"\x00"
        number = self.next_number
        datagram = self._seal(path, self._peer_cids.current.cid if peer_cid is None else peer_cid, payload)
        size = len(datagram)
        self._recovery.on_packet_sent(SentPacket(number, now, size, frames, in_flight))
        self._pacer.tokens -= size
        self.sent_eliciting = True
        return datagram

    def _seal(self, path: Path, peer_cid: bytes, payload: bytes) -> bytes:
        """A protected packet with this payload (RFC 9001 section 5)."""
        keys = self._keys
        number = self.next_number
        self.next_number = number + 1
        if keys.sealed >= KEY_UPDATE_PACKETS:
            if keys.update_due(self._recovery.largest_acked):
                keys.update(number)
                if self.log is not None:
                    self.log.key_updated(keys.phase)
            elif keys.sealed % KEY_UPDATE_PACKETS == 0:
                self._connection_frames.ping = True  # the peer has to acknowledge a packet of this phase first
        keys.sealed += 1
        datagram: bytes = seal_packet(0x41 | (keys.phase << 2), peer_cid, number, payload, keys.seals)
        if not path.is_validated:
            path.bytes_sent += len(datagram)
        if self.log is not None:
            self.log.sent(number, payload, len(datagram))
        return datagram
