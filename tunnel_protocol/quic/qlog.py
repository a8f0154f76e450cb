"""qlog events of 1-RTT packets (draft-ietf-quic-qlog-quic-events), of the code that sends and receives them.

Frames are described from the payload of each packet, after or before its protection, so that nothing on the way of a packet
needs to know about logging. Only used while `--quic-qlog-dir` is set.
"""

from typing import Any, Final, Protocol

from tunnel_protocol.quic.packets import read_ack
from tunnel_protocol.quic.sent_packet import SentPacket
from tunnel_protocol.quic.varint import pull_varint

_NAMES: Final = {
    0x00: "padding",
    0x01: "ping",
    0x04: "reset_stream",
    0x05: "stop_sending",
    0x06: "crypto",
    0x07: "new_token",
    0x10: "max_data",
    0x11: "max_stream_data",
    0x12: "max_streams",
    0x13: "max_streams",
    0x14: "data_blocked",
    0x15: "stream_data_blocked",
    0x16: "streams_blocked",
    0x17: "streams_blocked",
    0x18: "new_connection_id",
    0x19: "retire_connection_id",
    0x1A: "path_challenge",
    0x1B: "path_response",
    0x1C: "connection_close",
    0x1D: "connection_close",
    0x1E: "handshake_done",
}
_FIELDS: Final[dict[int, tuple[str, ...]]] = {
    0x04: ("stream_id", "error_code", "final_size"),
    0x05: ("stream_id", "error_code"),
    0x10: ("maximum",),
    0x11: ("stream_id", "maximum"),
    0x12: ("maximum",),
    0x13: ("maximum",),
    0x14: ("limit",),
    0x15: ("stream_id", "limit"),
    0x16: ("limit",),
    0x17: ("limit",),
    0x19: ("sequence_number",),
}


class ConnectionTrace(Protocol):
    """The trace of one connection."""

    def log_event(self, *, category: str, event: str, data: dict[str, Any]) -> None:
        """Add an event."""

    def end(self) -> None:
        """The connection has ended: write the trace. Called once."""


class PacketLog:
    """Logs the packets of one connection."""

    __slots__ = ("_trace",)

    def __init__(self, trace: ConnectionTrace) -> None:
        self._trace = trace

    def sent(self, number: int, payload: bytes, size: int) -> None:
        """A packet was sent; `size` is that of the datagram in bytes."""
        self._packet("packet_sent", number, payload, size)

    def received(self, number: int, payload: bytes, size: int) -> None:
        """A packet was received."""
        self._packet("packet_received", number, payload, size)

    def dropped(self, trigger: str, size: int) -> None:
        """A datagram was dropped."""
        data = {"trigger": trigger, "raw": {"length": size}}
        self._trace.log_event(category="transport", event="packet_dropped", data=data)

    def lost(self, packets: list[SentPacket]) -> None:
        """Packets count as lost."""
        for packet in packets:
            data = {"header": {"packet_number": packet.number, "packet_type": "1RTT"}}
            self._trace.log_event(category="recovery", event="packet_lost", data=data)

    def metrics(self, window: int, in_flight: int, rtt_ms: float, pto_count: int) -> None:
        """Congestion control and round trip time after an acknowledgement."""
        data = {
            "congestion_window": window,
            "bytes_in_flight": in_flight,
            "smoothed_rtt": rtt_ms,
            "pto_count": pto_count,
        }
        self._trace.log_event(category="recovery", event="metrics_updated", data=data)

    def key_updated(self, phase: int) -> None:
        """The keys of both directions were updated."""
        data = {"key_type": "1rtt_secret", "key_phase": phase}
        self._trace.log_event(category="security", event="key_updated", data=data)

    def closed(self, reason: str) -> None:
        """The connection has ended."""
        self._trace.log_event(category="connectivity", event="connection_closed", data={"reason": reason})
        self._trace.end()

    def _packet(self, event: str, number: int, payload: bytes, size: int) -> None:
        data = {
            "frames": describe_frames(payload),
            "header": {"packet_number": number, "packet_type": "1RTT"},
            "raw": {"length": size},
        }
        self._trace.log_event(category="transport", event=event, data=data)


def describe_frames(payload: bytes) -> list[dict[str, Any]]:
    """The frames of a payload; what cannot be read is one frame of type `unknown` that takes the rest."""
    frames: list[dict[str, Any]] = []
    at = 0
    while at < len(payload):
        try:
            described, at = _describe(payload, at)
        except (IndexError, KeyError):
            frames.append({"frame_type": "unknown", "raw": {"length": len(payload) - at}})
            break
        frames.append(described)
    return frames


def _describe(payload: bytes, at: int) -> tuple[dict[str, Any], int]:
    kind = payload[at]
    at += 1
    if kind in (0x02, 0x03):
        return _describe_ack(kind, payload, at)
    if 0x08 <= kind <= 0x0F:
        return _describe_stream(kind, payload, at)
    described: dict[str, Any] = {"frame_type": _NAMES[kind]}
    if kind == 0x00:
        end = at
        while end < len(payload) and not payload[end]:
            end += 1
        described["payload_length"] = end - at + 1
        return described, end
    for name in _FIELDS.get(kind, ()):
        described[name], at = pull_varint(payload, at)
    if 0x12 <= kind <= 0x17 and kind not in (0x14, 0x15):
        described["stream_type"] = "unidirectional" if kind & 1 else "bidirectional"
    elif kind in (0x06, 0x07, 0x1C, 0x1D):
        return _describe_with_length(kind, described, payload, at)
    elif kind == 0x18:
        described["sequence_number"], at = pull_varint(payload, at)
        described["retire_prior_to"], at = pull_varint(payload, at)
        end = at + 1 + payload[at]
        described["connection_id"] = payload[at + 1 : end].hex()
        at = end + 16
    elif kind in (0x1A, 0x1B):
        described["data"] = payload[at : at + 8].hex()
        at += 8
    return described, at


def _describe_ack(kind: int, payload: bytes, at: int) -> tuple[dict[str, Any], int]:
    _, delay, ranges, at = read_ack(payload, at)
    if kind == 0x03:
        for _ in range(3):
            _, at = pull_varint(payload, at)
    return {"frame_type": "ack", "ack_delay": delay, "acked_ranges": [list(one) for one in ranges]}, at


def _describe_stream(kind: int, payload: bytes, at: int) -> tuple[dict[str, Any], int]:
    stream_id, at = pull_varint(payload, at)
    offset = 0
    if kind & 4:
        offset, at = pull_varint(payload, at)
    end = len(payload)
    if kind & 2:
        length, at = pull_varint(payload, at)
        end = at + length
    described = {
        "frame_type": "stream",
        "stream_id": stream_id,
        "offset": offset,
        "length": end - at,
        "fin": bool(kind & 1),
    }
    return described, end


def _describe_with_length(kind: int, described: dict[str, Any], payload: bytes, at: int) -> tuple[dict[str, Any], int]:
    """CRYPTO, NEW_TOKEN and CONNECTION_CLOSE; tokens and the contents of TLS messages are left out."""
    if kind == 0x06:
        described["offset"], at = pull_varint(payload, at)
    elif kind in (0x1C, 0x1D):
        described["error_space"] = "transport" if kind == 0x1C else "application"
        described["error_code"], at = pull_varint(payload, at)
        if kind == 0x1C:
            _, at = pull_varint(payload, at)
    length, at = pull_varint(payload, at)
    described["length"] = length
    if kind in (0x1C, 0x1D):
        described["reason"] = payload[at : at + length].decode("utf-8", "replace")
    return described, at + length
