"""Where one request is placed: the chosen cluster, the worker of the current attempt, and the reservation on it."""

from router.balancing import Chosen
from router.registry import Backend, Reservation, RoutedCluster

RoutedChoice = Chosen[RoutedCluster, Backend]
"""A `Chosen` with the registry's types."""


class Placement:
    """One choice of the policy. The backend changes when another worker of the same cluster is tried."""

    __slots__ = ("backend", "choice", "reservation")

    def __init__(self, choice: RoutedChoice) -> None:
        self.choice = choice
        self.backend = choice.backend
        """The worker of the current or last attempt."""
        self.reservation: Reservation | None = None
        """The reservation of the running attempt; None before it, or if the worker's registration has ended."""

    def reserve(self, input_tokens: int | None, priority: int) -> None:
        """Reserve the attempt's work on the worker until its next report (docs/control-plane.md, "Reservations")."""
        self.reservation = self.choice.cluster.reserve(self.backend, input_tokens or 0, priority)

    def release(self) -> None:
        """Release the reservation: the worker has refused the work."""
        if self.reservation is not None:
            self.reservation.release()

    def sibling(self, failed_backends: set[str]) -> Backend | None:
        """Switch to another worker of the same cluster and return it; None if there is none left."""
        picked = self.choice.cluster.pick(failed_backends)
        if picked is not None:
            self.backend = picked
        return picked
