"""The connection slot of one registration generation: which connections it has, and which transitions are allowed. Sans-I/O.

The states are those of docs/protocol.md, "Connection sets":

    DISCONNECTED   no connection
    CONNECTED      one or more connections, possibly all of them closed
    INSTALLING     a reverse connection is being installed, there was none before
    REPLACING      a reverse connection is being installed while an unhealthy one is still recorded
    RETIRED        the registration has ended; terminal, every later transition is refused

A slot belongs to exactly one registration object, not to an id: a later registration of the same id has a slot of its own,
so neither can use the other's connections.
"""

from collections.abc import Callable, Sequence
from enum import Enum, auto
from typing import Generic, Protocol, TypeVar


class SlotConnection(Protocol):
    """What a slot asks of a connection."""

    @property
    def closed(self) -> bool:
        """Whether the QUIC connection has ended."""

    @property
    def suspected(self) -> bool:
        """Whether its peer is silent: the connection is open, but may be replaced."""

    @property
    def free_streams(self) -> int:
        """Number of streams that can be opened on it now without waiting."""


ConnectionT = TypeVar("ConnectionT", bound=SlotConnection)


class SlotState(Enum):
    """The state of a slot; see the module's docstring."""

    DISCONNECTED = auto()
    CONNECTED = auto()
    INSTALLING = auto()
    REPLACING = auto()
    RETIRED = auto()


class InstallPermit:
    """Permits its holder to complete one reverse installation; compared by identity."""

    __slots__ = ()


class ConnectionSlot(Generic[ConnectionT]):
    """The state machine. Every method is synchronous; `on_change` is called after each transition, not during one."""

    def __init__(self, on_change: Callable[[], None]) -> None:
        self.state = SlotState.DISCONNECTED
        self.members: tuple[ConnectionT, ...] = ()
        self._install: InstallPermit | None = None
        self._picks = 0
        self._turns = 0
        self._on_change = on_change

    @property
    def retired(self) -> bool:
        """Whether the registration has ended."""
        return self.state is SlotState.RETIRED

    def healthy(self) -> bool:
        """Whether any connection is open."""
        return any(not member.closed for member in self.members)

    def needs_replenishing(self) -> bool:
        """Whether any connection has closed."""
        return any(member.closed for member in self.members)

    def suspected(self) -> bool:
        """Whether there are open connections and all of them are silent."""
        return self.healthy() and self._replaceable()

    def free_streams(self) -> int:
        """Number of streams that can be opened without waiting, over all open connections."""
        return sum(member.free_streams for member in self.members if not member.closed)

    def pick(self) -> ConnectionT | None:
        """The connection for the next exchange: the first open one from a round-robin start; None if there is none.

        A silent connection, or one without a free stream, is chosen only if no other is open.
        """
        members = self.members
        if len(members) == 1:
            return None if members[0].closed else members[0]
        start = self._picks
        self._picks = start + 1
        second: ConnectionT | None = None
        for offset in range(len(members)):
            member = members[(start + offset) % len(members)]
            if member.closed:
                continue
            if not member.suspected and member.free_streams > 0:
                return member
            if second is None or (second.suspected and not member.suspected):
                second = member
        return second

    def next_open(self) -> ConnectionT | None:
        """The next open connection in turn, silent or not: the one to be probed now."""
        members = self.members
        for offset in range(len(members)):
            member = members[(self._turns + offset) % len(members)]
            if not member.closed:
                self._turns += offset + 1
                return member
        return None

    def replace_all(self, members: Sequence[ConnectionT]) -> tuple[ConnectionT, ...] | None:
        """Replace all connections by a complete direct set. Returns the replaced ones, or None if the slot is retired."""
        if self.state is SlotState.RETIRED:
            return None
        displaced = self.members
        self._install = None
        self._become(SlotState.CONNECTED, tuple(members))
        return displaced

    def begin_install(self) -> InstallPermit | None:
        """Permit the installation of a reverse connection; None if one is healthy or being installed, or after `retire`."""
        if self.state is SlotState.DISCONNECTED:
            state = SlotState.INSTALLING
        elif self.state is SlotState.CONNECTED and self._replaceable():
            state = SlotState.REPLACING
        else:
            return None
        self._install = install = InstallPermit()
        self._become(state, self.members)
        return install

    def complete_install(self, install: InstallPermit, member: ConnectionT) -> tuple[ConnectionT, ...] | None:
        """Install `member` by the permit `install`. Returns the replaced connections, or None if the permit is not valid."""
        if install is not self._install:
            return None
        self._install = None
        displaced = self.members
        if self.state is SlotState.REPLACING and not self._replaceable():
            self._become(SlotState.CONNECTED, displaced)
            return None
        self._become(SlotState.CONNECTED, (member,))
        return displaced

    def abandon_install(self, install: InstallPermit) -> None:
        """The installation of the permit `install` failed; another one may begin. No effect if the permit is not valid."""
        if install is not self._install:
            return
        self._install = None
        state = SlotState.CONNECTED if self.state is SlotState.REPLACING else SlotState.DISCONNECTED
        self._become(state, self.members)

    def reverse_closed(self, member: ConnectionT) -> bool:
        """A reverse connection closed: remove it if it is this slot's. Returns whether it was."""
        if not any(member is mine for mine in self.members):
            return False
        # No other state has members.
        self._become(SlotState.INSTALLING if self.state is SlotState.REPLACING else SlotState.DISCONNECTED, ())
        return True

    def retire(self) -> tuple[ConnectionT, ...]:
        """End the slot: nothing can be installed or picked any more. Returns the connections it had."""
        displaced = self.members
        if self.state is not SlotState.RETIRED:
            self._install = None
            self._become(SlotState.RETIRED, ())
        return displaced

    def _replaceable(self) -> bool:
        return all(member.closed or member.suspected for member in self.members)

    def _become(self, state: SlotState, members: tuple[ConnectionT, ...]) -> None:
        self.state = state
        self.members = members
        self._on_change()
