"""`random`: chooses uniformly among the eligible candidates."""

from collections.abc import Collection, Sequence
from random import Random
from typing import Final

from router.balancing.candidate import Candidate
from router.balancing.outcome import Choice
from router.balancing.registration import NoSettings, registration
from router.balancing.request import RoutingRequest
from router.balancing.sampling import sample


class RandomChoice:
    """One definition of the algorithm; without state, so it is also the balancer of every target."""

    def __init__(self, settings: NoSettings, random: Random) -> None:  # noqa: ARG002 - there are none
        self._random = random

    def balancer(self, routing_key: str | None, model: str) -> "RandomChoice":  # noqa: ARG002
        """The algorithm itself."""
        return self

    def choose(
        self,
        request: RoutingRequest,  # noqa: ARG002
        candidates: Sequence[Candidate],
        excluded: Collection[str],
        elapsed_ms: float,  # noqa: ARG002
    ) -> Choice | None:
        """A random eligible candidate."""
        sampled = sample(candidates, excluded, 1, self._random)
        return Choice(sampled[0]) if sampled else None


ALGORITHM: Final = registration("random", NoSettings.read, RandomChoice, position=3)
