"""`power-of-n`: chooses the best of a small random sample; ties are decided at random."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from random import Random
from typing import Final

from router.balancing.algorithm import Explanation
from router.balancing.candidate import Candidate
from router.balancing.estimates import comparators
from router.balancing.fields import Fields
from router.balancing.outcome import Choice
from router.balancing.registration import registration
from router.balancing.request import RoutingRequest
from router.balancing.sampling import sample

MAX_SAMPLE_COUNT: Final = 64


@dataclass(frozen=True)
class PowerOfNSettings:
    """Settings of `power-of-n`."""

    sample_count: int
    comparator: str

    @classmethod
    def read(cls, fields: Fields) -> "PowerOfNSettings":
        """Read the settings from a definition."""
        count = fields.unsigned("sample_count", 2, nullable=False)
        if not 1 <= count <= MAX_SAMPLE_COUNT:
            fields.refuse(f"power-of-n sample_count must be between 1 and {MAX_SAMPLE_COUNT}, got {count}")
        return cls(count, fields.choice("comparator", comparators(), "ttft"))


class PowerOfN:
    """One definition of the algorithm; without state, so it is also the balancer of every target."""

    def __init__(self, settings: PowerOfNSettings, random: Random) -> None:
        self.settings = settings
        self._sample_count = settings.sample_count
        self._score = comparators()[settings.comparator]
        self._random = random

    def balancer(self, routing_key: str | None, model: str) -> "PowerOfN":  # noqa: ARG002 - nothing to remember
        """The algorithm itself."""
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
        if len(sampled) < 2:  # one cluster is the everyday case of small deployments: nothing to compare
            return Choice(sampled[0]) if sampled else None
        tokens, priority, score = request.input_tokens or 0, request.priority, self._score
        scores = [score(candidate, tokens, priority) for candidate in sampled]
        least = min(scores)
        ties = scores.count(least)
        if ties == 1:
            return Choice(sampled[scores.index(least)])
        equal = [candidate for candidate, found in zip(sampled, scores, strict=True) if found == least]
        return Choice(equal[int(self._random.random() * ties)])

    def explanation(
        self,
        request: RoutingRequest,
        candidates: Sequence[Candidate],
        elapsed_ms: float,  # noqa: ARG002
    ) -> Explanation:
        """The score of each candidate by the comparator."""
        tokens, priority, score = request.input_tokens or 0, request.priority, self._score
        columns = {one.cluster_id: {"score": score(one, tokens, priority)} for one in candidates}
        return Explanation({}, columns, self.settings.comparator)


ALGORITHM: Final = registration(
    "power-of-n",
    PowerOfNSettings.read,
    PowerOfN,
    aliases=("power-of-two", "powerOf2", "powerOfN", "powerof2", "powerofn"),
    position=0,
)
