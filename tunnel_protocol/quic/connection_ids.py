"""The connection ids of both sides of a connection: issued, used and retired (RFC 9000 section 5.1)."""

import hmac
from collections.abc import Callable
from typing import Final

from tunnel_protocol.limit import Limit
from tunnel_protocol.quic.address_validation import RESET_TOKEN_BYTES
from tunnel_protocol.quic.ranges import Ranges
from tunnel_protocol.quic.transport_error import ErrorCode, TransportError

ACTIVE_IDS: Final = 8
"""Connection ids of one side in use at once: our active_connection_id_limit, and the most we issue."""

PENDING_RETIREMENTS: Final = Limit("quic.connection_ids_to_retire", pieces=32)
"""RETIRE_CONNECTION_ID frames that wait to be sent, before the peer is at fault (RFC 9000 section 5.1.2)."""

_MAX_PENDING_RETIREMENTS: Final = PENDING_RETIREMENTS.pieces or 0
_NEW_CONNECTION_ID, _RETIRE_CONNECTION_ID = 0x18, 0x19


class LocalConnectionIds:
    """Connection ids by which the peer addresses us."""

    __slots__ = ("_last_sent", "_make", "_most", "_next", "active", "unsent")

    def __init__(self, first: bytes, peer_limit: int, make: Callable[[], bytes]) -> None:
        """`first` is the one of the handshake, `make` returns a new id."""
        self.active: dict[bytes, int] = {first: 0}
        """Sequence numbers by connection id."""
        self.unsent: dict[int, bytes] = {}
        """Connection ids by sequence number whose NEW_CONNECTION_ID is to be sent."""
        self._next = 1
        self._last_sent = 0
        self._most = min(ACTIVE_IDS, peer_limit)
        self._make = make

    def issue(self) -> list[bytes]:
        """Make new connection ids up to the limit; returns them."""
        made: list[bytes] = []
        while len(self.active) < self._most:
            cid = self._make()
            self.active[cid] = self._next
            self.unsent[self._next] = cid
            self._next += 1
            made.append(cid)
        return made

    def take_unsent(self) -> tuple[int, bytes]:
        """Sequence number and id for the next NEW_CONNECTION_ID frame."""
        number = next(iter(self.unsent))
        self._last_sent = max(self._last_sent, number)
        return number, self.unsent.pop(number)

    def on_lost(self, number: int) -> None:
        """A NEW_CONNECTION_ID frame was lost: send it again unless its id was retired."""
        for cid, issued in self.active.items():
            if issued == number:
                self.unsent[number] = cid
                return

    def retire(self, number: int, used: bytes) -> bytes | None:
        """The peer retires `number` in a packet addressed to `used`; returns the id, None if it was retired before.

        Raises `TransportError` for a number that was never sent or that of the packet itself (RFC 9000 section 19.16).
        """
        if number > self._last_sent:
            raise TransportError(
                ErrorCode.PROTOCOL_VIOLATION, _RETIRE_CONNECTION_ID, "Cannot retire a connection ID that was never sent"
            )
        if self.active.get(used) == number:
            raise TransportError(
                ErrorCode.PROTOCOL_VIOLATION, _RETIRE_CONNECTION_ID, "Cannot retire current connection ID"
            )
        for cid, issued in self.active.items():
            if issued == number:
                del self.active[cid]
                self.unsent.pop(number, None)
                return cid
        return None


class PeerConnectionId:
    """A connection id by which we address the peer."""

    __slots__ = ("cid", "number", "reset_token")

    def __init__(self, number: int, cid: bytes, reset_token: bytes) -> None:
        self.number = number
        self.cid = cid
        self.reset_token = reset_token
        """The stateless reset token; empty if there is none."""


class PeerConnectionIds:
    """Connection ids that the peer has issued; `reserved` ones are lent to paths."""

    __slots__ = ("_retired_below", "_seen", "available", "current", "reserved", "to_retire")

    def __init__(self, first: PeerConnectionId) -> None:
        self.current = first
        """The one used on the active path."""
        self.available: list[PeerConnectionId] = []
        self.reserved = 0
        """Number of ids lent to paths."""
        self.to_retire: list[int] = []
        """Sequence numbers whose RETIRE_CONNECTION_ID is to be sent."""
        self._retired_below = 0
        self._seen = Ranges()
        self._seen.add(first.number, first.number + 1)

    def on_new(self, number: int, retire_prior_to: int, cid: bytes, reset_token: bytes) -> int:
        """Process NEW_CONNECTION_ID; returns the number below which ids lent to paths are retired. Raises `TransportError`."""
        if not 0 < len(cid) <= 20:
            raise TransportError(ErrorCode.FRAME_ENCODING_ERROR, _NEW_CONNECTION_ID, "Length must be from 1 to 20")
        if retire_prior_to > number:
            raise TransportError(
                ErrorCode.FRAME_ENCODING_ERROR, _NEW_CONNECTION_ID, "Retire Prior To is greater than Sequence Number"
            )
        if not self.current.cid:
            raise TransportError(
                ErrorCode.PROTOCOL_VIOLATION, _NEW_CONNECTION_ID, "A peer without connection ID cannot issue one"
            )
        below = self._retired_below = max(self._retired_below, retire_prior_to)
        seen = self._seen.contains(number)
        if not seen:
            self._seen.add(number, number + 1)
            if number >= below:
                self.available.append(PeerConnectionId(number, cid, reset_token))
            else:
                self.to_retire.append(number)
        self._seen.drop_below(below)
        for old in [one for one in self.available if one.number < below]:
            self.available.remove(old)
            self.to_retire.append(old.number)
        if self.current.number < below:
            # `number` is not below: if it is not new, some id that is not retired has been available all the time.
            self.change()
        return below

    def check(self) -> None:
        """Raise `TransportError` if the peer has issued, or had us retire, more than it may."""
        if 1 + len(self.available) + self.reserved > ACTIVE_IDS:
            raise TransportError(
                ErrorCode.CONNECTION_ID_LIMIT_ERROR, _NEW_CONNECTION_ID, "Too many active connection IDs"
            )
        if len(self.to_retire) > _MAX_PENDING_RETIREMENTS:
            raise TransportError(
                ErrorCode.CONNECTION_ID_LIMIT_ERROR, _NEW_CONNECTION_ID, "Too many pending retired connection IDs"
            )

    def is_reset(self, data: bytes) -> bool:
        """Whether a datagram ends with the stateless reset token of the present id (RFC 9000 section 10.3.1)."""
        token = self.current.reset_token
        return len(token) == RESET_TOKEN_BYTES and hmac.compare_digest(token, data[-RESET_TOKEN_BYTES:])

    def change(self) -> bool:
        """Use another id on the active path and retire the present one; False if there is no other."""
        if not self.available:
            return False
        self.use(self.available.pop(0))
        return True

    def use(self, other: PeerConnectionId) -> None:
        """Use `other` on the active path and retire the present one."""
        self.to_retire.append(self.current.number)
        self.current = other

    def lend(self) -> PeerConnectionId | None:
        """An id for a path that is not active; None if there is none to spare."""
        if not self.available:
            return None
        self.reserved += 1
        return self.available.pop(0)
