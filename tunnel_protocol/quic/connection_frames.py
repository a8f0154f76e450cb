"""Frames of the connection itself that wait to be sent: connection ids, PING, HANDSHAKE_DONE (RFC 9000 section 19)."""

from collections.abc import Callable
from typing import Final

from tunnel_protocol.quic.connection_ids import LocalConnectionIds, PeerConnectionIds
from tunnel_protocol.quic.sent_packet import HANDSHAKE_DONE, NEW_CONNECTION_ID, PING, RETIRE_CONNECTION_ID, SentFrame
from tunnel_protocol.quic.varint import varint

_LARGEST_BYTES: Final = 64
"""Free bytes in a packet for another of these frames; NEW_CONNECTION_ID takes up to 34."""


class ConnectionFrames:
    """Which of these frames wait, and their encoding."""

    __slots__ = ("_local", "_peer", "_reset_token", "handshake_done", "ping")

    def __init__(
        self,
        local: LocalConnectionIds,
        peer: PeerConnectionIds,
        reset_token: Callable[[bytes], bytes],
        *,
        handshake_done: bool,
    ) -> None:
        self._local = local
        self._peer = peer
        self._reset_token = reset_token
        self.handshake_done = handshake_done
        """Whether HANDSHAKE_DONE is to be sent."""
        self.ping = False
        """Whether a PING is to be sent."""

    def waiting(self) -> bool:
        """Whether `take` has something to take."""
        return self.handshake_done or self.ping or len(self._local.unsent) > 0 or len(self._peer.to_retire) > 0

    def take(self, budget: int, frames: list[SentFrame], parts: list[bytes]) -> int:
        """Append frames that fit in `budget` bytes, and their encoding to `parts`; returns the remaining budget."""
        if budget < _LARGEST_BYTES:
            return budget
        if self.handshake_done:
            self.handshake_done = False
            frames.append(SentFrame(HANDSHAKE_DONE))
            parts.append(b"\x1e")
            budget -= 1
        if self.ping:
            self.ping = False
            frames.append(SentFrame(PING))
            parts.append(b"\x01")
            budget -= 1
        local, retired = self._local, self._peer.to_retire
        while local.unsent and budget >= _LARGEST_BYTES:
            number, cid = local.take_unsent()
            frame = b"".join(
                (b"\x18", varint(number), b"\x00", len(cid).to_bytes(1, "big"), cid, self._reset_token(cid))
            )
            frames.append(SentFrame(NEW_CONNECTION_ID, None, number))
            parts.append(frame)
            budget -= len(frame)
        while retired and budget >= _LARGEST_BYTES:
            number = retired.pop(0)
            frame = b"\x19" + varint(number)
            frames.append(SentFrame(RETIRE_CONNECTION_ID, None, number))
            parts.append(frame)
            budget -= len(frame)
        return budget

    def on_lost(self, frame: SentFrame) -> None:
        """One of these frames was lost: send it again if it is still needed."""
        if frame.kind == NEW_CONNECTION_ID:
            self._local.on_lost(frame.start)
        elif frame.kind == RETIRE_CONNECTION_ID:
            self._peer.to_retire.append(frame.start)
        elif frame.kind == HANDSHAKE_DONE:
            self.handshake_done = True
