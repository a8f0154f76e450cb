"""`pulsar`: each affinity key has a stable ranking of clusters, weighted by throughput; the first feasible one is chosen."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from random import Random
from typing import Final

from router.balancing.algorithm import Explanation
from router.balancing.candidate import Candidate
from router.balancing.feasibility import Feasibility, feasibility, ranking_rule
from router.balancing.fields import Fields
from router.balancing.hashing import prefix
from router.balancing.outcome import Choice
from router.balancing.ranking import RendezvousRanking, ranking_columns
from router.balancing.registration import registration
from router.balancing.rendezvous_weight import LAST_MEAN_INPUT_TPS, check_rendezvous_weight, read_rendezvous_weight
from router.balancing.request import RoutingRequest


@dataclass(frozen=True)
class PulsarSettings:
    """Settings of `pulsar`."""

    seed: str | None
    consider_kv_free_tokens: bool
    rendezvous_weight: str = LAST_MEAN_INPUT_TPS

    @classmethod
    def read(cls, fields: Fields) -> "PulsarSettings":
        """Read the settings from a definition."""
        return cls(fields.text("seed"), fields.boolean("consider_kv_free_tokens"), read_rendezvous_weight(fields))

    @classmethod
    def read_without_weight(cls, fields: Fields) -> "PulsarSettings":
        """Read the settings of the form whose weight cannot be chosen."""
        return cls(fields.text("seed"), fields.boolean("consider_kv_free_tokens"))


class Pulsar:
    """One definition of the algorithm."""

    def __init__(self, settings: PulsarSettings, random: Random) -> None:  # noqa: ARG002 - nothing is random
        check_rendezvous_weight(settings.rendezvous_weight)
        self.settings = settings

    def balancer(self, routing_key: str | None, model: str) -> "PulsarBalancer":
        """A balancer with a ranking of its own."""
        settings = self.settings
        ranking = RendezvousRanking(prefix(settings.seed, routing_key, model))
        return PulsarBalancer(ranking, consider_kv=settings.consider_kv_free_tokens)

    def may_take(self, request: RoutingRequest, candidate: Candidate) -> bool:
        """Whether the candidate is in the ranking and has enough KV cache."""
        return self._rule(request, candidate) is None

    def explanation(
        self,
        request: RoutingRequest,
        candidates: Sequence[Candidate],
        elapsed_ms: float,  # noqa: ARG002
    ) -> Explanation:
        """The ranking, and which candidates cannot be chosen."""
        start = prefix(self.settings.seed, request.routing_key, request.model)
        found = {candidate.cluster_id: self._rule(request, candidate) for candidate in candidates}
        rules = {cluster_id: rule for cluster_id, rule in found.items() if rule is not None}
        return Explanation(rules, ranking_columns(start, request.affinity_key, candidates))

    def _rule(self, request: RoutingRequest, candidate: Candidate) -> str | None:
        return ranking_rule(candidate, request.input_tokens, consider_kv=self.settings.consider_kv_free_tokens)


class PulsarBalancer:
    """The balancer of one target."""

    def __init__(self, ranking: RendezvousRanking, *, consider_kv: bool) -> None:
        self._ranking = ranking
        self._consider_kv = consider_kv

    def choose(
        self,
        request: RoutingRequest,
        candidates: Sequence[Candidate],
        excluded: Collection[str],
        elapsed_ms: float,  # noqa: ARG002 - age does not matter here
    ) -> Choice | None:
        """The first feasible candidate of the ranking."""
        skipped = False
        for rank, (_, candidate) in enumerate(self._ranking.ranked(request.affinity_key, candidates), 1):
            verdict = feasibility(candidate, request.input_tokens, excluded, consider_kv=self._consider_kv)
            if verdict is Feasibility.ELIGIBLE:
                return Choice(candidate, rank, skipped)
            skipped = skipped or verdict.is_kv_skip
        return None


ALGORITHM: Final = registration(
    "pulsar",
    PulsarSettings.read,
    Pulsar,
    position=4,
    earlier=registration("pulsar", PulsarSettings.read_without_weight, Pulsar),
)
