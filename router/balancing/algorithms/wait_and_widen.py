"""`wait-and-widen`: clusters with a short TTFT first, further ones as the request waits; optionally with cache affinity."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from random import Random

from router.balancing.affinity import VIRTUAL_NODES, AffinityRing
from router.balancing.affinity_wait import AffinityWait
from router.balancing.algorithm import Explanation
from router.balancing.candidate import Candidate
from router.balancing.estimates import comparators
from router.balancing.fields import Fields
from router.balancing.forecast import Forecast
from router.balancing.hashing import prefix
from router.balancing.outcome import Choice
from router.balancing.registration import registration
from router.balancing.request import RoutingRequest
from router.balancing.widening import WideningSettings, widen, widen_all, widening_rule


@dataclass(frozen=True)
class WaitAndWidenSettings:
    """Settings; `widening` holds those shared with `pulsar-wait-and-widen`."""

    widening: WideningSettings
    comparator: str
    seed: str | None
    cache_affinity_virtual_nodes: int
    cache_affinity_backend_selection_count: int
    affinity_wait: AffinityWait

    @classmethod
    def read(cls, fields: Fields) -> "WaitAndWidenSettings":
        """Read the settings from a definition."""
        return cls._read(fields, AffinityWait.read(fields))

    @classmethod
    def read_without_wait(cls, fields: Fields) -> "WaitAndWidenSettings":
        """Read the settings of the form that does not wait for affinity."""
        return cls._read(fields, AffinityWait())

    @classmethod
    def _read(cls, fields: Fields, affinity_wait: AffinityWait) -> "WaitAndWidenSettings":
        return cls(
            widening=WideningSettings.read(fields),
            comparator=fields.choice("comparator", comparators(), "ttft"),
            seed=fields.text("seed"),
            cache_affinity_virtual_nodes=fields.unsigned("cache_affinity_virtual_nodes", 150, limit=VIRTUAL_NODES),
            cache_affinity_backend_selection_count=fields.unsigned("cache_affinity_backend_selection_count", 0),
            affinity_wait=affinity_wait,
        )


class WaitAndWiden:
    """One definition of the algorithm."""

    def __init__(self, settings: WaitAndWidenSettings, random: Random) -> None:
        self.settings = settings
        self.widening = settings.widening
        self.random = random
        self.affinity_count = settings.cache_affinity_backend_selection_count
        self._score = comparators()[settings.comparator]

    def balancer(self, routing_key: str | None, model: str) -> "WaitAndWidenBalancer":
        """A balancer with an affinity ring of its own."""
        settings = self.settings
        ring = AffinityRing(prefix(settings.seed, routing_key, model), settings.cache_affinity_virtual_nodes)
        return WaitAndWidenBalancer(self, ring)

    def with_fresh_rng(self) -> "WaitAndWiden":
        """The same definition with another source of random numbers (not for secrets)."""
        return WaitAndWiden(self.settings, Random())  # noqa: S311

    def explanation(self, request: RoutingRequest, candidates: Sequence[Candidate], elapsed_ms: float) -> Explanation:
        """The scores by which a sample is compared, and which candidates cannot be in one."""
        tokens, priority, score = request.input_tokens or 0, request.priority, self._score
        columns = {one.cluster_id: {"score": score(one, tokens, priority)} for one in candidates}
        found = {one.cluster_id: widening_rule(self.widening, request, one, elapsed_ms) for one in candidates}
        rules = {cluster_id: rule for cluster_id, rule in found.items() if rule is not None}
        return Explanation(rules, columns, self.settings.comparator)

    def better(self, one: Candidate, other: Candidate, request: RoutingRequest) -> bool:
        """Whether `one` is strictly better than `other` by the configured comparator."""
        tokens, priority = request.input_tokens or 0, request.priority
        return self._score(one, tokens, priority) < self._score(other, tokens, priority)


class WaitAndWidenBalancer:
    """The balancer of one target: chooses among the clusters that the affinity key prefers, else among all."""

    def __init__(self, algorithm: WaitAndWiden, ring: AffinityRing) -> None:
        self._algorithm = algorithm
        self._ring = ring
        settings = algorithm.widening
        self._forecast = Forecast(ignore_queue=settings.ignore_queue_time, max_queued=settings.max_queued)

    def copy(self) -> "WaitAndWidenBalancer":
        """A copy for explanations with its own random numbers. It shares the ring, which is large and holds no decisions."""
        return WaitAndWidenBalancer(self._algorithm.with_fresh_rng(), self._ring)

    def choose(
        self, request: RoutingRequest, candidates: Sequence[Candidate], excluded: Collection[str], elapsed_ms: float
    ) -> Choice | None:
        """Widening over the candidates preferred by the affinity key, then over all."""
        algorithm = self._algorithm
        settings, random = algorithm.widening, algorithm.random
        if request.affinity_key and algorithm.affinity_count:
            subset = self._ring.preferred(request.affinity_key, candidates, excluded, algorithm.affinity_count)
            found = widen(settings, request, subset, excluded, elapsed_ms, algorithm.better, random)
            if found is not None:
                return Choice(found)
        found = widen_all(settings, self._forecast, request, candidates, excluded, elapsed_ms, algorithm.better, random)
        return None if found is None else Choice(found)


ALGORITHM = registration(
    "wait-and-widen",
    WaitAndWidenSettings.read,
    WaitAndWiden,
    aliases=("groq-multiregion",),
    position=1,
    earlier=registration("wait-and-widen", WaitAndWidenSettings.read_without_wait, WaitAndWiden),
)
