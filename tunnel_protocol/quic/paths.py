"""Network paths of a connection: validation, and migration of the peer (RFC 9000 sections 8.2 and 9).

Times are seconds of the caller's monotonic clock.
"""

import secrets
from collections import deque
from typing import Final

from tunnel_protocol.limit import Limit
from tunnel_protocol.quic.connection_ids import PeerConnectionId, PeerConnectionIds
from tunnel_protocol.quic.engine import Address

PATHS: Final = Limit("quic.paths", pieces=8)
"""Addresses of the peer that are known at once."""

PATH_CHALLENGES: Final = Limit("quic.path_challenges", pieces=32)
"""PATH_CHALLENGE frames of one path that wait for their PATH_RESPONSE."""

_MAX_PATHS: Final = PATHS.pieces or 0
_MAX_CHALLENGES: Final = PATH_CHALLENGES.pieces or 0
_AMPLIFICATION: Final = 3
"""Bytes that may be sent to an address that is not validated, per byte received from it (RFC 9000 section 8.1)."""


class Path:
    """One address of the peer (see `Address`: with the local address, if that is known)."""

    __slots__ = (
        "_challenges",
        "address",
        "bytes_received",
        "bytes_sent",
        "challenge_due",
        "is_validated",
        "peer_cid",
        "responses",
        "validation_deadline",
    )

    def __init__(self, address: Address, is_validated: bool = False) -> None:
        self.address = address
        self.is_validated = is_validated
        self.bytes_received = 0
        """Bytes received before the path was validated."""
        self.bytes_sent = 0
        self.peer_cid: PeerConnectionId | None = None
        """The connection id lent to this path while it is not the active one."""
        self.responses: deque[bytes] = deque()
        """Data of PATH_RESPONSE frames to send on this path."""
        self.challenge_due = not is_validated
        """Whether a PATH_CHALLENGE is to be sent."""
        self.validation_deadline: float | None = None
        """When the validation has failed; None before the first challenge."""
        self._challenges: list[bytes] = []

    def allowance(self) -> int:
        """Bytes that may be sent now on a path that is not validated."""
        return _AMPLIFICATION * self.bytes_received - self.bytes_sent

    def new_challenge(self) -> bytes:
        """Data for a PATH_CHALLENGE that is sent now; a response to any of the last ones validates the path."""
        data = secrets.token_bytes(8)
        self._challenges = [*self._challenges[-7:], data]
        self.challenge_due = False
        return data

    def validate(self, data: bytes) -> bool:
        """Whether `data` of a PATH_RESPONSE answers a challenge of this path, which is validated then."""
        if data not in self._challenges:
            return False
        self._challenges = []
        self.is_validated = True
        self.challenge_due = False
        self.validation_deadline = None
        return True

    def validate_again(self) -> None:
        """The path is active now and must be validated, whatever was sent before."""
        self.challenge_due = True
        self.validation_deadline = None

    def respond(self, data: bytes) -> None:
        """Answer a PATH_CHALLENGE; too many at once are dropped, the peer may challenge again."""
        if len(self.responses) < _MAX_CHALLENGES:
            self.responses.append(data)


class Paths:
    """All known paths; datagrams are sent on `active`."""

    __slots__ = ("_peer_cids", "active", "busy", "others")

    def __init__(self, active: Path, peer_cids: PeerConnectionIds) -> None:
        self.active = active
        self.others: list[Path] = []
        self.busy = False
        """Whether a path may have a PATH_CHALLENGE or PATH_RESPONSE to send."""
        self._peer_cids = peer_cids

    def known(self, address: Address) -> Path | None:
        """The path with this address."""
        if self.active.address == address:
            return self.active
        for path in self.others:
            if path.address == address:
                return path
        return None

    def add(self, address: Address) -> Path:
        """A new path; above the limit the oldest that is not validated, or else the oldest, is forgotten."""
        if len(self.others) >= _MAX_PATHS - 1:
            gone = next((path for path in self.others if not path.is_validated), self.others[0])
            self.others.remove(gone)
            self._take_back(gone)
        path = Path(address)
        self.others.append(path)
        self.busy = True
        return path

    def promote(self, path: Path) -> None:
        """The peer sends from another path now (RFC 9000 section 9.2): use it, and validate it if that was not done."""
        self.others.remove(path)
        self.others.append(self.active)
        self.active = path
        lent = path.peer_cid
        if lent is not None:
            path.peer_cid = None
            self._peer_cids.reserved -= 1
            self._peer_cids.use(lent)
        if not path.is_validated:
            path.validate_again()
            self.busy = True

    def restore(self) -> bool:
        """The active path could not be validated: return to the last validated one (RFC 9000 section 9.3.2); False if none."""
        for path in reversed(self.others):
            if path.is_validated:
                self.others.remove(path)
                self.active = path
                self._take_back(path)
                return True
        return False

    def validate(self, data: bytes) -> Path | None:
        """The path that a PATH_RESPONSE has validated; None if it answers nothing."""
        if not self.active.is_validated and self.active.validate(data):
            return self.active
        for path in self.others:
            if path.validate(data):
                return path
        return None

    def retire_below(self, number: int) -> None:
        """The peer has retired its connection ids below `number`: those lent to paths are retired, too."""
        for path in self.others:
            if path.peer_cid is not None and path.peer_cid.number < number:
                self._take_back(path)

    def _take_back(self, path: Path) -> None:
        lent = path.peer_cid
        if lent is not None:
            path.peer_cid = None
            self._peer_cids.reserved -= 1
            self._peer_cids.to_retire.append(lent.number)
