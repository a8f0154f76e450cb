"""`power-of-n`: the best of a small random sample, ties decided by chance."""

from collections.abc import Collection, Sequence
from random import Random

from router.balancing.candidate import Candidate
from router.balancing.estimates import Score
from router.balancing.outcome import Choice
from router.balancing.request import RoutingRequest


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
        if excluded:
            candidates = [candidate for candidate in candidates if candidate.cluster_id not in excluded]
        count = len(candidates)
        if count == 0:
            return None
        tokens, priority, score = request.input_tokens or 0, request.priority, self._score
        if count == 1:
            return Choice(candidates[0])
        random = self._random.random
        if self._sample_count == 2:
            first = int(random() * count)
            second = int(random() * (count - 1))
            if second >= first:
                second += 1
            sample: Sequence[Candidate] = (candidates[first], candidates[second])
        elif self._sample_count >= count:
            sample = candidates
        else:
            sample = self._random.sample(candidates, self._sample_count)
        best = sample[0]
        best_score = score(best, tokens, priority)
        ties = 1
        for candidate in sample[1:]:
            found = score(candidate, tokens, priority)
            if found < best_score:
                best, best_score, ties = candidate, found, 1
            elif found == best_score:
                ties += 1
                if random() * ties < 1.0:
                    best = candidate
        return Choice(best)
