"""Where one request is placed: the cluster that was chosen, the worker that is asked, and the work reserved there."""

from router.balancing import Chosen
from router.registry import Backend, Reservation, RoutedCluster

RoutedChoice = Chosen[RoutedCluster, Backend]
"""A choice among what the registry has."""


class Placement:
    """One choice of the policy. The worker changes when another one of the same cluster is asked."""

    __slots__ = ("backend", "choice", "reservation")

    def __init__(self, choice: RoutedChoice) -> None:
        self.choice = choice
        self.backend = choice.backend
        """The worker that is asked now, or was asked last."""
        self.reservation: Reservation | None = None
        """The work of the running attempt; None before it, or if the worker has left meanwhile."""

    def reserve(self, input_tokens: int | None, priority: int) -> None:
        """Count an attempt's work on the worker until it reports (docs/control-plane.md, "Reservations")."""
        self.reservation = self.choice.cluster.reserve(self.backend, input_tokens or 0, priority)

    def release(self) -> None:
        """Take the work out again: the worker has refused it."""
        if self.reservation is not None:
            self.reservation.release()

    def sibling(self, failed_backends: set[str]) -> Backend | None:
        """Another worker of the same cluster, which is asked from now on; None if there is none left."""
        picked = self.choice.cluster.pick(failed_backends)
        if picked is not None:
            self.backend = picked
        return picked
