"""Whether the holder of an inference server id is alive, when a second registration stream claims the id. Pure.

Source: docs/control-plane.md, "Loss of a worker". Times are monotonic seconds, given by the caller.
"""

from enum import Enum, auto


class Liveness(Enum):
    """Whether the holder of an id is alive."""

    ALIVE = auto()
    """Its tunnel is up or was never up, or it has sent a message since the claim: the claim is refused."""

    UNDECIDED = auto()
    """Its tunnel is lost; it has until `HolderLiveness.dead_at` to send a message."""

    DEAD = auto()
    """Its tunnel is lost and it has sent nothing for three heartbeats: the id passes to the claimant."""


class HolderLiveness:
    """What shows whether one registration stream is alive: its messages and its tunnel."""

    __slots__ = ("_silence_s", "_tunnel_lost", "last_received_at")

    def __init__(self, silence_s: float, now: float) -> None:
        self._silence_s = silence_s
        self._tunnel_lost = False
        self.last_received_at = now
        """Time of the last message; before the first one, time at which the stream was opened."""

    @property
    def dead_at(self) -> float:
        """Time at which the holder counts as dead if its tunnel stays lost and no message arrives."""
        return self.last_received_at + self._silence_s

    def message_received(self, now: float) -> None:
        """A registration message has arrived."""
        self.last_received_at = now

    def tunnel_lost(self) -> None:
        """The tunnel has closed or its probes are unanswered. Not called for a tunnel that was never up."""
        self._tunnel_lost = True

    def tunnel_recovered(self) -> None:
        """A probe through the tunnel was answered again."""
        self._tunnel_lost = False

    def judge(self, claimed_at: float, now: float) -> Liveness:
        """Whether, at `now`, the holder of an id that was claimed at `claimed_at` is alive."""
        if not self._tunnel_lost or self.last_received_at > claimed_at:
            return Liveness.ALIVE
        return Liveness.DEAD if now >= self.dead_at else Liveness.UNDECIDED
