"""`pulsar`: every affinity key has a stable ranking of clusters, weighted by throughput; the first feasible one is taken."""

from collections.abc import Collection, Sequence

from router.balancing.candidate import Candidate
from router.balancing.feasibility import Feasibility, feasibility
from router.balancing.hashing import prefix
from router.balancing.outcome import Choice
from router.balancing.ranking import RendezvousRanking
from router.balancing.request import RoutingRequest


class Pulsar:
    """One definition of the algorithm."""

    def __init__(self, *, seed: str | None = None, consider_kv_free_tokens: bool = False) -> None:
        self._seed = seed
        self._consider_kv = consider_kv_free_tokens

    def balancer(self, routing_key: str | None, model: str) -> "PulsarBalancer":
        """A balancer with a ranking of its own."""
        ranking = RendezvousRanking(prefix(self._seed, routing_key, model))
        return PulsarBalancer(ranking, consider_kv=self._consider_kv)


class PulsarBalancer:
    """Decides for one target."""

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
