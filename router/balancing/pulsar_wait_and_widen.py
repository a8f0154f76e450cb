"""`pulsar-wait-and-widen`: the pulsar ranking, taken in bands of doubling size, with wait-and-widen inside each band."""

from collections.abc import Collection, Iterator, Sequence
from random import Random

from router.balancing.candidate import Candidate
from router.balancing.estimates import queue_delay_ms
from router.balancing.feasibility import Feasibility, feasibility
from router.balancing.hashing import prefix
from router.balancing.outcome import Choice
from router.balancing.ranking import RendezvousRanking
from router.balancing.request import RoutingRequest
from router.balancing.widening import WideningSettings, widen


def bands(count: int) -> Iterator[tuple[int, int]]:
    """Half-open index ranges of sizes 1, 2, 4, ... over `count` ranks, the last one cut."""
    start, size = 0, 1
    while start < count:
        yield start, min(start + size, count)
        start += size
        size *= 2


def less_loaded(one: Candidate, other: Candidate, request: RoutingRequest) -> bool:
    """Shorter queue; if equal, fewer running requests, relative to concurrency where both report it."""
    first, second = queue_delay_ms(one, request.priority), queue_delay_ms(other, request.priority)
    if first != second:
        return first < second
    if one.max_engine_concurrency and other.max_engine_concurrency:
        return (
            one.num_running_queries / one.max_engine_concurrency
            < other.num_running_queries / other.max_engine_concurrency
        )
    return one.num_running_queries < other.num_running_queries


class PulsarWaitAndWiden:
    """One definition of the algorithm."""

    def __init__(
        self,
        settings: WideningSettings,
        random: Random,
        *,
        seed: str | None = None,
        consider_kv_free_tokens: bool = False,
    ) -> None:
        self.settings = settings
        self.random = random
        self.consider_kv = consider_kv_free_tokens
        self._seed = seed

    def balancer(self, routing_key: str | None, model: str) -> "PulsarWaitAndWidenBalancer":
        """A balancer with a ranking of its own."""
        return PulsarWaitAndWidenBalancer(self, RendezvousRanking(prefix(self._seed, routing_key, model)))


class PulsarWaitAndWidenBalancer:
    """Decides for one target."""

    def __init__(self, algorithm: PulsarWaitAndWiden, ranking: RendezvousRanking) -> None:
        self._algorithm = algorithm
        self._ranking = ranking

    def choose(
        self, request: RoutingRequest, candidates: Sequence[Candidate], excluded: Collection[str], elapsed_ms: float
    ) -> Choice | None:
        """The first-ranked one if nothing speaks against it, else band by band."""
        algorithm = self._algorithm
        ranking = self._ranking.ranked(request.affinity_key, candidates)
        ranked: list[Candidate] = []
        verdicts: list[Feasibility] = []
        for _, candidate in ranking:
            verdict = feasibility(candidate, request.input_tokens, excluded, consider_kv=algorithm.consider_kv)
            if not ranked and verdict is Feasibility.ELIGIBLE and not algorithm.settings.limits_queue:
                return Choice(candidate)
            ranked.append(candidate)
            verdicts.append(verdict)
        for start, stop in bands(len(ranked)):
            band = [ranked[i] for i in range(start, stop) if verdicts[i] is Feasibility.ELIGIBLE]
            if not band:
                continue
            found = widen(algorithm.settings, request, band, (), elapsed_ms, less_loaded, algorithm.random)
            if found is not None:
                position = ranked.index(found)
                skipped = any(verdict.is_kv_skip for verdict in verdicts[:position])
                return Choice(found, position + 1, skipped)
        return None
