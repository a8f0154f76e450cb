"""The connection slot of one registration generation: which connections it has, and who may change that. Sans-I/O.

The states are those of docs/protocol.md, "Connection sets":

    DISCONNECTED   nothing
    CONNECTED      one or more connections, possibly all of them dead
    INSTALLING     a reverse connection is being set up, there was none before
    REPLACING      a reverse connection is being set up while an unhealthy one is still recorded
    RETIRED        the registration is over; terminal, every later transition is refused

A slot belongs to exactly one registration object, never to an id: a successor under the same id has a slot of its own, so
neither can ever borrow the other's connections.
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
        """Whether its peer has fallen silent: still open, but its place may be taken."""

    @property
    def free_streams(self) -> int:
        """How many streams can be opened on it right now without waiting."""


ConnectionT = TypeVar("ConnectionT", bound=SlotConnection)


class SlotState(Enum):
    """Where a slot stands; see the module's docstring."""

    DISCONNECTED = auto()
    CONNECTED = auto()
    INSTALLING = auto()
    REPLACING = auto()
    RETIRED = auto()


class InstallPermit:
    """The right to complete one reverse installation; compared by identity."""

    __slots__ = ()


class ConnectionSlot(Generic[ConnectionT]):
    """The state machine. Every method is synchronous; `on_change` is called after each transition, never within one."""

    def __init__(self, on_change: Callable[[], None]) -> None:
        self.state = SlotState.DISCONNECTED
        self.members: tuple[ConnectionT, ...] = ()
        self._install: InstallPermit | None = None
        self._picks = 0
        self._turns = 0
        self._on_change = on_change

    @property
    def retired(self) -> bool:
        """Whether the registration is over."""
        return self.state is SlotState.RETIRED

    def healthy(self) -> bool:
        """Whether any member is open."""
        return any(not member.closed for member in self.members)

    def needs_replenishing(self) -> bool:
        """Whether any member has closed."""
        return any(member.closed for member in self.members)

    def suspected(self) -> bool:
        """Whether there are open members and every one of them has fallen silent."""
        return self.healthy() and self._replaceable()

    def free_streams(self) -> int:
        """How many streams can be opened without waiting, over all open members."""
        return sum(member.free_streams for member in self.members if not member.closed)

    def pick(self) -> ConnectionT | None:
        """The member for the next exchange: round-robin start, then the first open one; None if there is none.

        A silent member, or one without a free stream, is passed over while another will do.
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
        """The next open member in turn, whatever its state: the one to be probed now."""
        members = self.members
        for offset in range(len(members)):
            member = members[(self._turns + offset) % len(members)]
            if not member.closed:
                self._turns += offset + 1
                return member
        return None

    def replace_all(self, members: Sequence[ConnectionT]) -> tuple[ConnectionT, ...] | None:
        """A complete direct set was established: it becomes the set. The displaced members, or None if refused (retired)."""
        if self.state is SlotState.RETIRED:
            return None
        displaced = self.members
        self._install = None
        self._become(SlotState.CONNECTED, tuple(members))
        return displaced

    def begin_install(self) -> InstallPermit | None:
        """A reverse connection is about to be set up. None if refused: a live one exists, another is under way, or retired."""
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
        """The set-up that `install` stands for succeeded. The displaced members, or None if the connection was refused."""
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
        """The set-up that `install` stands for failed; another one may begin. No effect if it is over already."""
        if install is not self._install:
            return
        self._install = None
        state = SlotState.CONNECTED if self.state is SlotState.REPLACING else SlotState.DISCONNECTED
        self._become(state, self.members)

    def reverse_closed(self, member: ConnectionT) -> bool:
        """A reverse connection closed; it is forgotten if it is this slot's. Says whether it was."""
        if not any(member is mine for mine in self.members):
            return False
        # No other state has members.
        self._become(SlotState.INSTALLING if self.state is SlotState.REPLACING else SlotState.DISCONNECTED, ())
        return True

    def retire(self) -> tuple[ConnectionT, ...]:
        """The registration is over: nothing can be installed or picked again. The members it had."""
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
