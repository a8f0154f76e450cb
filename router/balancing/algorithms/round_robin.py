"""`round-robin`: one counter per target, modulo the number of candidates that are eligible now."""

from collections.abc import Collection, Sequence
from random import Random
from typing import Final

from router.balancing.candidate import Candidate
from router.balancing.outcome import Choice
from router.balancing.registration import NoSettings, registration
from router.balancing.request import RoutingRequest


class RoundRobin:
    """One definition of the algorithm; creates a counter per target."""

    def __init__(self, settings: NoSettings, random: Random) -> None:
        """Uses neither argument."""

    def balancer(self, routing_key: str | None, model: str) -> "RoundRobinBalancer":  # noqa: ARG002
        """A counter at 0."""
        return RoundRobinBalancer()


class RoundRobinBalancer:
    """The counter of one target."""

    def __init__(self, count: int = 0) -> None:
        self._count = count

    def copy(self) -> "RoundRobinBalancer":
        """A counter at the same position, for explanations."""
        return RoundRobinBalancer(self._count)

    def choose(
        self,
        request: RoutingRequest,  # noqa: ARG002
        candidates: Sequence[Candidate],
        excluded: Collection[str],
        elapsed_ms: float,  # noqa: ARG002
    ) -> Choice | None:
        """The next eligible candidate; without one the counter does not change."""
        if excluded:
            candidates = [candidate for candidate in candidates if candidate.cluster_id not in excluded]
        if not candidates:
            return None
        index = self._count % len(candidates)
        self._count += 1
        return Choice(candidates[index])


ALGORITHM: Final = registration("round-robin", NoSettings.read, RoundRobin, position=2)
