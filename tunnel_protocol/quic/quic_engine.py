"""Implements `Engine`: a handshake (`hand_over.Handshake`), and the connection that goes on with its result (`one_rtt`).

A server's handshake is let go as soon as it is complete, a client's when the server has confirmed it, because until then its
last Handshake packet may have to be sent again (RFC 9001 section 4.9.2).
"""

from typing import Final

from tunnel_protocol.errors import ConnectionClosedError
from tunnel_protocol.limit import Limit
from tunnel_protocol.quic.connection_callbacks import NullEngineCallbacks
from tunnel_protocol.quic.datagram_packets import split_datagram
from tunnel_protocol.quic.datagrams import Run
from tunnel_protocol.quic.engine import Address, Engine, EngineCallbacks
from tunnel_protocol.quic.hand_over import Handshake
from tunnel_protocol.quic.one_rtt import OneRttConnection
from tunnel_protocol.quic.settings import QuicSettings
from tunnel_protocol.quic.stream_interface import Stream, StreamHandler

EARLY_PACKETS: Final = Limit("quic.early_packets", pieces=4)
"""1-RTT packets of a connection that arrived before its handshake was complete (RFC 9001 section 5.7)."""

_MAX_EARLY: Final = EARLY_PACKETS.pieces or 0


class QuicEngine(Engine):
    """Implements `Engine`."""

    def __init__(self, owner: EngineCallbacks, handshake: Handshake, settings: QuicSettings) -> None:
        self._owner: EngineCallbacks = owner
        self._settings = settings
        self._handshake: Handshake | None = handshake
        self.one_rtt: OneRttConnection | None = None
        """The connection after the handshake; None before it is complete."""
        self._early: list[tuple[bytes, Address]] = []
        self._server_name = handshake.server_name
        self._error: ConnectionClosedError | None = None
        """Why the handshake was abandoned."""
        self._closed_reported = False

    # --- properties --------------------------------------------------------------------------------------------------

    @property
    def peer_address(self) -> Address:
        """See `Engine`."""
        if self.one_rtt is not None:
            return self.one_rtt.peer_address
        assert self._handshake is not None  # noqa: S101 - let go only after it has handed over
        return self._handshake.peer_address

    @property
    def server_name(self) -> str | None:
        """See `Engine`."""
        return self._server_name if self._handshake is None else self._handshake.server_name

    @property
    def established(self) -> bool:
        """See `Engine`."""
        return self.one_rtt is not None

    @property
    def closed(self) -> bool:
        """See `Engine`."""
        if self.one_rtt is not None:
            return self.one_rtt.closed
        return self._handshake is None or self._handshake.closed

    @property
    def finished(self) -> bool:
        """See `Engine`."""
        if self.one_rtt is not None:
            return self.one_rtt.finished
        return self._closed_reported and (self._handshake is None or self._handshake.finished)

    @property
    def free_streams(self) -> int:
        """See `Engine`."""
        one_rtt = self.one_rtt
        return 0 if one_rtt is None or one_rtt.closed else one_rtt.table.free_streams

    @property
    def open_streams(self) -> int:
        """See `Engine`."""
        return 0 if self.one_rtt is None else len(self.one_rtt.table.streams)

    @property
    def smoothed_rtt_ms(self) -> float:
        """See `Engine`."""
        return 0.0 if self.one_rtt is None else self.one_rtt.recovery.smoothed * 1000

    # --- datagrams and time ------------------------------------------------------------------------------------------

    def receive(self, data: bytes, address: Address, now: float) -> None:
        """See `Engine`."""
        if self._handshake is None:
            if self.one_rtt is not None and data and data[0] & 0xC0 == 0x40:
                self.one_rtt.receive(data, address, now)
            return
        long, short = split_datagram(data)
        if long:
            self._handshake.receive(long, address, now)
            self._go_on(now)
        if short:
            if self.one_rtt is not None:
                self._receive_one_rtt(short, address, now)
            elif len(self._early) < _MAX_EARLY:
                self._early.append((short, address))

    def _receive_one_rtt(self, data: bytes, address: Address, now: float) -> None:
        one_rtt = self.one_rtt
        assert one_rtt is not None  # noqa: S101 - checked by the callers
        one_rtt.receive(data, address, now)
        if one_rtt.confirmed:
            self._let_go()

    def _go_on(self, now: float) -> None:
        """Begin the connection if the handshake is complete; end it if the handshake has failed afterwards."""
        handshake = self._handshake
        assert handshake is not None  # noqa: S101 - checked by the callers
        if self.one_rtt is not None:
            if handshake.closed:
                self.one_rtt.abandon(handshake.closed_error())
            return
        made = handshake.hand_over()
        if made is None:
            return
        one_rtt = self.one_rtt = OneRttConnection(made, self._settings, self._owner, now)
        if one_rtt.confirmed:
            self._let_go()
        early, self._early = self._early, []
        for data, address in early:
            self._receive_one_rtt(data, address, now)

    def _let_go(self) -> None:
        handshake, self._handshake = self._handshake, None
        if handshake is not None:
            self._server_name = handshake.server_name
            handshake.discard()

    def poll(self, now: float) -> list[Run]:
        """See `Engine`."""
        if self._handshake is None:
            return [] if self.one_rtt is None else self.one_rtt.poll(now)
        runs: list[Run] = [(data, 0, address) for data, address in self._handshake.poll(now)]
        if self.one_rtt is not None:
            runs += self.one_rtt.poll(now)
        return runs

    def deadline(self) -> float | None:
        """See `Engine`."""
        if self._handshake is None:
            return None if self.one_rtt is None else self.one_rtt.deadline()
        at = self._handshake.deadline()
        if self.one_rtt is not None:
            later = self.one_rtt.deadline()
            if at is None or (later is not None and later < at):
                at = later
        return at

    def handle_timer(self, now: float) -> None:
        """See `Engine`."""
        if self._handshake is not None:
            at = self._handshake.deadline()
            if at is not None and at <= now:
                self._handshake.handle_timer(now)
                self._go_on(now)
                if self.one_rtt is not None:
                    self.one_rtt.probe()
        one_rtt = self.one_rtt
        if one_rtt is not None:
            at = one_rtt.deadline()
            if self._handshake is None or (at is not None and at <= now):
                one_rtt.handle_timer(now)

    def datagram_refused(self, size: int, now: float) -> None:
        """See `Engine`."""
        if self.one_rtt is not None:
            self.one_rtt.datagram_refused(size, now)

    # --- from the owner ----------------------------------------------------------------------------------------------

    def deliver(self) -> None:
        """See `Engine`."""
        if self.one_rtt is not None:
            self.one_rtt.deliver()
            return
        handshake = self._handshake
        if self._closed_reported or handshake is None or not handshake.closed:
            return
        self._closed_reported = True
        self._owner.on_closed(self._error or handshake.closed_error())

    def open_stream(self, handler: StreamHandler) -> Stream | None:
        """See `Engine`."""
        return None if self.one_rtt is None else self.one_rtt.open_stream(handler)

    def ping(self) -> None:
        """See `Engine`. No effect before the handshake is complete, whose packets are acknowledged anyway."""
        if self.one_rtt is not None and not self.one_rtt.closed:
            self.one_rtt.ping()

    def shutdown(self, error_code: int, reason: str) -> None:
        """See `Engine`."""
        if self.closed:
            return
        if self._handshake is not None:
            # A server that did not get the last packet of the handshake can only read this one (RFC 9000 section 10.2.3).
            self._handshake.shutdown(error_code, reason)
        if self.one_rtt is not None:
            self.one_rtt.shutdown(error_code, reason)
        else:
            self._owner.on_work()

    def is_reset(self, data: bytes) -> bool:
        """See `Engine`."""
        return self.one_rtt is not None and self.one_rtt.is_reset(data)

    def abandon(self, error: ConnectionClosedError) -> None:
        """See `Engine`."""
        if self._handshake is not None:
            if self.one_rtt is None and not self._handshake.closed:
                self._error = error
            self._handshake.abandon()
        if self.one_rtt is not None:
            self.one_rtt.abandon(error)

    def discard(self) -> None:
        """See `Engine`. The owner gets no more callbacks."""
        self._owner = NullEngineCallbacks()
        if self.one_rtt is not None:
            self.one_rtt.discard()
        if self._handshake is not None:
            self._handshake.discard()
