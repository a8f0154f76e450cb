"""`pulsar`: every affinity key has a stable ranking of clusters, weighted by throughput; the first feasible one is taken."""

from collections.abc import Collection, Sequence

from router.balancing.candidate import Candidate
from router.balancing.feasibility import Feasibility, feasibility
from router.balancing.hashing import prefix
from router.balancing.outcome import Choice
from router.balancing.ranking import RendezvousRanking, beats
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
        """The best feasible candidate: a maximum, no sort; its rank is counted only if something was in the way."""
        scored = self._ranking.scored(request.affinity_key, candidates)
        verdicts: dict[str, Feasibility] = {}
        if not self._consider_kv:
            feasible = [pair for pair in scored if pair[1].cluster_id not in excluded] if excluded else scored
        else:
            verdicts = {
                pair[1].cluster_id: feasibility(pair[1], request.input_tokens, excluded, consider_kv=self._consider_kv)
                for pair in scored
            }
            feasible = [pair for pair in scored if verdicts[pair[1].cluster_id] is Feasibility.ELIGIBLE]
        if not feasible:
            return None
        best = feasible[0]
        for pair in feasible:
            if pair[0] > best[0] or (pair[0] == best[0] and pair[1].cluster_id < best[1].cluster_id):
                best = pair
        if len(feasible) == len(scored):
            return Choice(best[1])
        ahead = [pair for pair in scored if beats(pair, best)]
        skipped = bool(verdicts) and any(verdicts[pair[1].cluster_id].is_kv_skip for pair in ahead)
        return Choice(best[1], 1 + len(ahead), skipped)
