"""`pulsar-wait-and-widen`: the pulsar ranking, divided into bands of doubling size, with wait-and-widen in each band."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from random import Random

from router.balancing.affinity import VIRTUAL_NODES
from router.balancing.affinity_wait import AffinityWait
from router.balancing.algorithm import Explanation
from router.balancing.candidate import Candidate
from router.balancing.config_error import ConfigError
from router.balancing.estimates import comparators, queue_delay_ms
from router.balancing.feasibility import Feasibility, feasibility, ranking_rule
from router.balancing.fields import Fields
from router.balancing.hashing import prefix
from router.balancing.outcome import Choice, Wait
from router.balancing.ranking import RendezvousRanking, ranking_columns
from router.balancing.registration import registration
from router.balancing.rendezvous_weight import LAST_MEAN_INPUT_TPS, check_rendezvous_weight, read_rendezvous_weight
from router.balancing.request import RoutingRequest
from router.balancing.widening import WideningSettings, widen, widening_rule


def bands(count: int) -> Iterator[tuple[int, int]]:
    """Half-open index ranges of sizes 1, 2, 4, ... over `count` ranks; the last one ends at `count`."""
    start, size = 0, 1
    while start < count:
        yield start, min(start + size, count)
        start += size
        size *= 2


def less_loaded(one: Candidate, other: Candidate, request: RoutingRequest) -> bool:
    """Whether `one` has a shorter queue or, if equal, fewer running requests (per concurrency if both report it)."""
    first, second = queue_delay_ms(one, request.priority), queue_delay_ms(other, request.priority)
    if first != second:
        return first < second
    if one.max_engine_concurrency and other.max_engine_concurrency:
        return (
            one.num_running_queries / one.max_engine_concurrency
            < other.num_running_queries / other.max_engine_concurrency
        )
    return one.num_running_queries < other.num_running_queries


@dataclass(frozen=True)
class PulsarWaitAndWidenSettings:
    """Settings; `widening` holds those shared with wait-and-widen. Some are accepted only for compatibility with it."""

    widening: WideningSettings
    seed: str | None
    consider_kv_free_tokens: bool
    comparator: str | None
    """Must not be set."""
    cache_affinity_virtual_nodes: int | None
    """No effect."""
    cache_affinity_backend_selection_count: int
    """Size of the affinity group, which is the first of the ranking; 0 counts as 1."""
    affinity_wait: AffinityWait
    band_widen_interval_ms: int
    """Milliseconds between the opening of two bands of the ranking; 0 = all open at once."""
    fallback_max_queued: int
    """As `max_queued`, for clusters that are not in the affinity group."""
    rendezvous_weight: str

    @classmethod
    def read(cls, fields: Fields) -> "PulsarWaitAndWidenSettings":
        """Read the settings from a definition."""
        wait = AffinityWait.read(fields)
        return cls._read(
            fields,
            wait,
            fields.unsigned("band_widen_interval_ms", wait.wait_ms),
            fields.unsigned("fallback_max_queued", 0),
            read_rendezvous_weight(fields),
        )

    @classmethod
    def read_without_wait(cls, fields: Fields) -> "PulsarWaitAndWidenSettings":
        """Read the settings of the form that does not wait for affinity."""
        return cls._read(fields, AffinityWait(), 0, 0, LAST_MEAN_INPUT_TPS)

    @classmethod
    def _read(
        cls, fields: Fields, wait: AffinityWait, band_widen_interval_ms: int, fallback_max_queued: int, weight: str
    ) -> "PulsarWaitAndWidenSettings":
        return cls(
            widening=WideningSettings.read(fields),
            seed=fields.text("seed"),
            consider_kv_free_tokens=fields.boolean("consider_kv_free_tokens"),
            comparator=fields.choice("comparator", comparators(), None),
            cache_affinity_virtual_nodes=fields.unsigned("cache_affinity_virtual_nodes", None, limit=VIRTUAL_NODES),
            cache_affinity_backend_selection_count=fields.unsigned("cache_affinity_backend_selection_count", 1),
            affinity_wait=wait,
            band_widen_interval_ms=band_widen_interval_ms,
            fallback_max_queued=fallback_max_queued,
            rendezvous_weight=weight,
        )


class PulsarWaitAndWiden:
    """One definition of the algorithm."""

    def __init__(self, settings: PulsarWaitAndWidenSettings, random: Random) -> None:
        if settings.comparator is not None:
            raise ConfigError("comparator is not supported for pulsar-wait-and-widen", "build")
        check_rendezvous_weight(settings.rendezvous_weight)
        self.settings = settings
        self.widening = settings.widening
        self.random = random
        self.consider_kv = settings.consider_kv_free_tokens

    def balancer(self, routing_key: str | None, model: str) -> "PulsarWaitAndWidenBalancer":
        """A balancer with a ranking of its own."""
        ranking = RendezvousRanking(prefix(self.settings.seed, routing_key, model))
        return PulsarWaitAndWidenBalancer(self, ranking)

    def may_take(self, request: RoutingRequest, candidate: Candidate) -> bool:
        """Whether the candidate is in the ranking and has enough KV cache."""
        return ranking_rule(candidate, request.input_tokens, consider_kv=self.consider_kv) is None

    def explanation(self, request: RoutingRequest, candidates: Sequence[Candidate], elapsed_ms: float) -> Explanation:
        """The ranking, and which candidates cannot be chosen by its rules or by those of the bands."""
        rules = {}
        for candidate in candidates:
            rule = ranking_rule(candidate, request.input_tokens, consider_kv=self.consider_kv) or widening_rule(
                self.widening, request, candidate, elapsed_ms
            )
            if rule is not None:
                rules[candidate.cluster_id] = rule
        start = prefix(self.settings.seed, request.routing_key, request.model)
        return Explanation(rules, ranking_columns(start, request.affinity_key, candidates))


class PulsarWaitAndWidenBalancer:
    """The balancer of one target."""

    def __init__(self, algorithm: PulsarWaitAndWiden, ranking: RendezvousRanking) -> None:
        self._algorithm = algorithm
        self._ranking = ranking

    def choose(
        self, request: RoutingRequest, candidates: Sequence[Candidate], excluded: Collection[str], elapsed_ms: float
    ) -> Choice | None:
        """The first-ranked candidate if no rule excludes it, else a choice band by band."""
        algorithm = self._algorithm
        ranking = self._ranking.ranked(request.affinity_key, candidates)
        ranked: list[Candidate] = []
        verdicts: list[Feasibility] = []
        for _, candidate in ranking:
            verdict = feasibility(candidate, request.input_tokens, excluded, consider_kv=algorithm.consider_kv)
            if not ranked and verdict is Feasibility.ELIGIBLE and not algorithm.widening.limits_queue:
                return Choice(candidate)
            ranked.append(candidate)
            verdicts.append(verdict)
        for start, stop in bands(len(ranked)):
            band = [ranked[i] for i in range(start, stop) if verdicts[i] is Feasibility.ELIGIBLE]
            if not band:
                continue
            found = widen(algorithm.widening, request, band, (), elapsed_ms, elapsed_ms, less_loaded, algorithm.random)
            if found is not None and not isinstance(found, Wait):
                position = ranked.index(found)
                skipped = any(verdict.is_kv_skip for verdict in verdicts[:position])
                return Choice(found, position + 1, skipped)
        return None


ALGORITHM = registration(
    "pulsar-wait-and-widen",
    PulsarWaitAndWidenSettings.read,
    PulsarWaitAndWiden,
    aliases=("pulsar-multiregion",),
    position=5,
    earlier=registration("pulsar-wait-and-widen", PulsarWaitAndWidenSettings.read_without_wait, PulsarWaitAndWiden),
)
