"""`wait-and-widen`: clusters with a short TTFT first, further ones as the request waits; optionally with cache affinity."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from random import Random
from typing import Final

from router.balancing.affinity import VIRTUAL_NODES, AffinityRing
from router.balancing.affinity_wait import AffinityWait, affinity_details
from router.balancing.algorithm import Explanation
from router.balancing.candidate import Candidate
from router.balancing.estimates import comparators, discounted_ttft_ms
from router.balancing.fields import Fields
from router.balancing.forecast import Forecast
from router.balancing.hashing import prefix
from router.balancing.outcome import Choice, Wait, shorter
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
        self.affinity_wait = settings.affinity_wait
        self._score = comparators()[settings.comparator]
        self._discounts = settings.comparator == "ttft"

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

    def better_in_group(self, one: Candidate, other: Candidate, request: RoutingRequest) -> bool:
        """As `better`, between two members of the affinity group, which have a part of the prompt in their caches."""
        if not self._discounts:
            return self.better(one, other, request)
        tokens, priority, scale = request.input_tokens or 0, request.priority, self.affinity_wait.input_tokens_scale
        return discounted_ttft_ms(one, tokens, priority, scale) < discounted_ttft_ms(other, tokens, priority, scale)


class WaitAndWidenBalancer:
    """The balancer of one target: asks the group that the affinity key prefers, and all clusters after a wait."""

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
    ) -> Choice | Wait | None:
        """Widening over the affinity group; without a choice there, over all candidates from the age of the wait on."""
        algorithm = self._algorithm
        if not (request.affinity_key and algorithm.affinity_count):
            found = self._of_all(request, candidates, excluded, elapsed_ms, elapsed_ms)
            return found if found is None or isinstance(found, Wait) else Choice(found)
        # Of all candidates: an excluded member of the group is not replaced, because no other cluster has the prompt cached.
        group = self._ring.preferred(request.affinity_key, candidates, (), algorithm.affinity_count)
        wait = algorithm.affinity_wait
        member = widen(
            algorithm.widening,
            request,
            group,
            excluded,
            elapsed_ms,
            elapsed_ms,
            algorithm.better_in_group,
            algorithm.random,
            wait.input_tokens_scale,
        )
        if member is not None and not isinstance(member, Wait):
            return Choice(member)
        left_ms = wait.wait_ms - elapsed_ms
        if left_ms > 0.0:
            return shorter(member, Wait(left_ms / 1000.0))
        found = self._of_all(request, candidates, excluded, elapsed_ms, -left_ms)
        if found is None or isinstance(found, Wait):
            return shorter(member, found)
        return Choice(found, len(group) + 1)

    def details(
        self, request: RoutingRequest, candidates: Sequence[Candidate], elapsed_ms: float
    ) -> dict[str, object] | None:
        """The affinity group of the request, for explanations; None without one."""
        algorithm = self._algorithm
        if not (request.affinity_key and algorithm.affinity_count):
            return None
        group = self._ring.preferred(request.affinity_key, candidates, (), algorithm.affinity_count)
        return affinity_details(group, algorithm.affinity_wait, elapsed_ms)

    def _of_all(
        self,
        request: RoutingRequest,
        candidates: Sequence[Candidate],
        excluded: Collection[str],
        elapsed_ms: float,
        unlock_ms: float,
    ) -> Candidate | Wait | None:
        algorithm = self._algorithm
        return widen_all(
            algorithm.widening,
            self._forecast,
            request,
            candidates,
            excluded,
            elapsed_ms,
            unlock_ms,
            algorithm.better,
            algorithm.random,
        )


class WaitAndWidenWithoutWaits(WaitAndWiden):
    """The form of the release line 0.11."""

    def balancer(self, routing_key: str | None, model: str) -> "ImmediateBalancer":
        """A balancer with an affinity ring of its own."""
        settings = self.settings
        ring = AffinityRing(prefix(settings.seed, routing_key, model), settings.cache_affinity_virtual_nodes)
        return ImmediateBalancer(self, ring)

    def with_fresh_rng(self) -> "WaitAndWidenWithoutWaits":
        """The same definition with another source of random numbers (not for secrets)."""
        return WaitAndWidenWithoutWaits(self.settings, Random())  # noqa: S311


class ImmediateBalancer(WaitAndWidenBalancer):
    """Asks the clusters that the affinity key prefers, of those that are not excluded, and all others at once."""

    def copy(self) -> "ImmediateBalancer":
        """A copy for explanations with its own random numbers."""
        return ImmediateBalancer(self._algorithm.with_fresh_rng(), self._ring)

    def choose(
        self, request: RoutingRequest, candidates: Sequence[Candidate], excluded: Collection[str], elapsed_ms: float
    ) -> Choice | None:
        """Widening over the candidates preferred by the affinity key, then over all."""
        algorithm = self._algorithm
        if request.affinity_key and algorithm.affinity_count:
            subset = self._ring.preferred(request.affinity_key, candidates, excluded, algorithm.affinity_count)
            found = widen(
                algorithm.widening,
                request,
                subset,
                excluded,
                elapsed_ms,
                elapsed_ms,
                algorithm.better,
                algorithm.random,
            )
            if found is not None and not isinstance(found, Wait):
                return Choice(found)
        found = self._of_all(request, candidates, excluded, elapsed_ms, elapsed_ms)
        return None if found is None or isinstance(found, Wait) else Choice(found)


ALGORITHM: Final = registration(
    "wait-and-widen",
    WaitAndWidenSettings.read,
    WaitAndWiden,
    aliases=("groq-multiregion",),
    position=1,
    earlier=registration("wait-and-widen", WaitAndWidenSettings.read_without_wait, WaitAndWidenWithoutWaits),
)
