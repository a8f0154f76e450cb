"""`power-of-n`: the best of a small random sample, ties decided by chance."""

from collections.abc import Collection, Sequence
from random import Random

from router.balancing.candidate import Candidate
from router.balancing.estimates import Score
from router.balancing.outcome import Choice
from router.balancing.request import RoutingRequest
from router.balancing.sampling import sample


class PowerOfN:
    """Stateless; its own balancer."""

    def __init__(self, sample_count: int, score: Score, random: Random) -> None:
        self._sample_count = sample_count
        self._score = score
        self._random = random

    def balancer(self, routing_key: str | None, model: str) -> "PowerOfN":  # noqa: ARG002 - nothing to remember
        """Itself."""
        return self

    def choose(
        self,
        request: RoutingRequest,
        candidates: Sequence[Candidate],
        excluded: Collection[str],
        elapsed_ms: float,  # noqa: ARG002 - age does not matter here
    ) -> Choice | None:
        """The best of up to `sample_count` eligible candidates."""
        if self._sample_count < len(candidates):
            sampled = sample(candidates, excluded, self._sample_count, self._random)
        else:
            sampled = [candidate for candidate in candidates if candidate.cluster_id not in excluded]
        if not sampled:
            return None
        tokens, priority, score = request.input_tokens or 0, request.priority, self._score
        scores = [score(candidate, tokens, priority) for candidate in sampled]
        least = min(scores)
        ties = scores.count(least)
        if ties == 1:
            return Choice(sampled[scores.index(least)])
        equal = [candidate for candidate, found in zip(sampled, scores, strict=True) if found == least]
        return Choice(equal[int(self._random.random() * ties)])
