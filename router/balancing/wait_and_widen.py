"""`wait-and-widen`: near clusters first, farther ones the longer a request has waited; optionally with cache affinity."""

from collections.abc import Collection, Sequence
from random import Random

from router.balancing.affinity import AffinityRing
from router.balancing.candidate import Candidate
from router.balancing.estimates import Score
from router.balancing.forecast import Forecast
from router.balancing.hashing import prefix
from router.balancing.outcome import Choice
from router.balancing.request import RoutingRequest
from router.balancing.widening import WideningSettings, widen, widen_all


class WaitAndWiden:
    """One definition of the algorithm."""

    def __init__(
        self,
        settings: WideningSettings,
        score: Score,
        random: Random,
        *,
        seed: str | None = None,
        virtual_nodes: int = 150,
        affinity_count: int = 0,
    ) -> None:
        self.settings = settings
        self.random = random
        self.affinity_count = affinity_count
        self._score = score
        self._seed = seed
        self._virtual_nodes = virtual_nodes

    def balancer(self, routing_key: str | None, model: str) -> "WaitAndWidenBalancer":
        """A balancer with an affinity ring of its own."""
        ring = AffinityRing(prefix(self._seed, routing_key, model), self._virtual_nodes)
        return WaitAndWidenBalancer(self, ring)

    def with_fresh_rng(self) -> "WaitAndWiden":
        """The same definition with another source of random numbers, not one to keep secrets by."""
        return WaitAndWiden(
            self.settings,
            self._score,
            Random(),  # noqa: S311
            seed=self._seed,
            virtual_nodes=self._virtual_nodes,
            affinity_count=self.affinity_count,
        )

    def better(self, one: Candidate, other: Candidate, request: RoutingRequest) -> bool:
        """By the configured comparator."""
        tokens, priority = request.input_tokens or 0, request.priority
        return self._score(one, tokens, priority) < self._score(other, tokens, priority)


class WaitAndWidenBalancer:
    """Decides for one target: among the clusters a key prefers, else among all."""

    def __init__(self, algorithm: WaitAndWiden, ring: AffinityRing) -> None:
        self._algorithm = algorithm
        self._ring = ring
        settings = algorithm.settings
        self._forecast = Forecast(ignore_queue=settings.ignore_queue_time, max_queued=settings.max_queued)

    def copy(self) -> "WaitAndWidenBalancer":
        """One for explanations, with random numbers of its own. It shares the ring, which is large and remembers no decision."""
        return WaitAndWidenBalancer(self._algorithm.with_fresh_rng(), self._ring)

    def choose(
        self, request: RoutingRequest, candidates: Sequence[Candidate], excluded: Collection[str], elapsed_ms: float
    ) -> Choice | None:
        """The core on the affinity subset, then on everything."""
        algorithm = self._algorithm
        settings, random = algorithm.settings, algorithm.random
        if request.affinity_key and algorithm.affinity_count:
            subset = self._ring.preferred(request.affinity_key, candidates, excluded, algorithm.affinity_count)
            found = widen(settings, request, subset, excluded, elapsed_ms, algorithm.better, random)
            if found is not None:
                return Choice(found)
        found = widen_all(settings, self._forecast, request, candidates, excluded, elapsed_ms, algorithm.better, random)
        return None if found is None else Choice(found)
