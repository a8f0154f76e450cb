"""`pulsar-wait-and-widen`: wait-and-widen over the first of the pulsar ranking, over more of them the longer a request waits."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Final

from router.balancing.affinity import VIRTUAL_NODES
from router.balancing.affinity_wait import AffinityWait, affinity_details
from router.balancing.algorithm import Explanation
from router.balancing.candidate import Candidate
from router.balancing.config_error import ConfigError
from router.balancing.estimates import comparators, queue_delay_ms
from router.balancing.feasibility import Feasibility, feasibility, ranking_rule
from router.balancing.fields import Fields
from router.balancing.hashing import prefix
from router.balancing.outcome import Choice, Wait, shorter
from router.balancing.ranking import RendezvousRanking, ranking_columns
from router.balancing.registration import registration
from router.balancing.rendezvous_weight import LAST_MEAN_INPUT_TPS, check_rendezvous_weight, read_rendezvous_weight
from router.balancing.request import RoutingRequest
from router.balancing.widening import WideningSettings, widen, widening_rule

_MOST_BANDS: Final = 32
"""More bands than any ranking has."""


def open_count(group: int, opened_bands: int) -> int:
    """How many of a ranking are open: the group, and bands of 2, 4, 8, ... after it."""
    return group + (2 << min(opened_bands, _MOST_BANDS)) - 2


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
        self.fallback = replace(settings.widening, max_queued=settings.fallback_max_queued)
        """The settings outside the affinity group."""
        self.group_size = max(1, settings.cache_affinity_backend_selection_count)
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
        columns = ranking_columns(start, request.affinity_key, candidates)
        for column in columns.values():
            rank = column["rank"]
            column["band"] = self.band(rank) if isinstance(rank, int) else None
        return Explanation(rules, columns)

    def band(self, rank: int) -> int:
        """The band of a 1-based rank: 0 is the group, 1 the first that opens after it."""
        band = 0
        while rank > open_count(self.group_size, band):
            band += 1
        return band


class PulsarWaitAndWidenBalancer:
    """The balancer of one target: asks the first of the ranking, and more of them the longer the request waits."""

    def __init__(self, algorithm: PulsarWaitAndWiden, ranking: RendezvousRanking) -> None:
        self._algorithm = algorithm
        self._ranking = ranking

    def choose(
        self, request: RoutingRequest, candidates: Sequence[Candidate], excluded: Collection[str], elapsed_ms: float
    ) -> Choice | Wait | None:
        """The first-ranked candidate if no rule excludes it; else a choice of the group, and after its wait of open bands."""
        algorithm = self._algorithm
        ranked = _ranked(algorithm, self._ranking.ranked(request.affinity_key, candidates), request, excluded)
        if ranked is None or isinstance(ranked, Choice):
            return ranked
        wait = algorithm.settings.affinity_wait
        member = widen(
            algorithm.widening,
            request,
            ranked.eligible(algorithm.group_size),
            (),
            elapsed_ms,
            elapsed_ms,
            less_loaded,
            algorithm.random,
            wait.input_tokens_scale,
        )
        if member is not None and not isinstance(member, Wait):
            return ranked.choice(member)
        waited_ms = elapsed_ms - wait.wait_ms
        if waited_ms < 0.0:
            return shorter(member, Wait(-waited_ms / 1000.0))
        count, next_band = self._open_now(waited_ms, len(ranked.candidates))
        found = widen(
            algorithm.fallback,
            request,
            ranked.eligible(count),
            (),
            elapsed_ms,
            waited_ms,
            less_loaded,
            algorithm.random,
        )
        if found is not None and not isinstance(found, Wait):
            return ranked.choice(found)
        return shorter(shorter(member, found), next_band)

    def details(
        self, request: RoutingRequest, candidates: Sequence[Candidate], elapsed_ms: float
    ) -> dict[str, object] | None:
        """The affinity group of the request and how many of its ranking are open, for explanations."""
        algorithm = self._algorithm
        ranked = [candidate for _, candidate in self._ranking.ranked(request.affinity_key, candidates)]
        if not ranked:
            return None
        wait = algorithm.settings.affinity_wait
        details = affinity_details(ranked[: algorithm.group_size], wait, elapsed_ms)
        waited_ms = elapsed_ms - wait.wait_ms
        if waited_ms < 0.0:
            return {**details, "open_clusters": min(algorithm.group_size, len(ranked)), "next_band_in_ms": -waited_ms}
        count, next_band = self._open_now(waited_ms, len(ranked))
        return {**details, "open_clusters": count, "next_band_in_ms": next_band and next_band.seconds * 1000.0}

    def _open_now(self, waited_ms: float, total: int) -> tuple[int, Wait | None]:
        """How many of the ranking are open this long after the wait for the group, and the wait until more of them are."""
        algorithm = self._algorithm
        interval_ms = algorithm.settings.band_widen_interval_ms
        if interval_ms == 0:
            return total, None
        opened = int(waited_ms // interval_ms) + 1
        count = open_count(algorithm.group_size, opened)
        if count >= total:
            return total, None
        return count, Wait((opened * interval_ms - waited_ms) / 1000.0)


def _ranked(
    algorithm: PulsarWaitAndWiden,
    order: Iterator[tuple[float, Candidate]],
    request: RoutingRequest,
    excluded: Collection[str],
) -> "Choice | _Ranked | None":
    """The first of the ranking, if no rule excludes it and its load does not matter; else the ranking; None if it is empty."""
    ranked: _Ranked | None = None
    for _, candidate in order:
        verdict = feasibility(candidate, request.input_tokens, excluded, consider_kv=algorithm.consider_kv)
        if ranked is None:
            if verdict is Feasibility.ELIGIBLE and not algorithm.widening.limits_queue:
                return Choice(candidate)
            ranked = _Ranked()
        ranked.candidates.append(candidate)
        ranked.verdicts.append(verdict)
    return ranked


class _Ranked:
    """The ranking of one decision, with the rule that excludes each candidate."""

    __slots__ = ("candidates", "verdicts")

    def __init__(self) -> None:
        self.candidates: list[Candidate] = []
        self.verdicts: list[Feasibility] = []

    def eligible(self, stop: int, start: int = 0) -> list[Candidate]:
        """The candidates of these ranks (from 0) that no rule excludes."""
        last = min(stop, len(self.candidates))
        return [self.candidates[rank] for rank in range(start, last) if self.verdicts[rank] is Feasibility.ELIGIBLE]

    def choice(self, found: Candidate) -> Choice:
        """The choice of a candidate of the ranking."""
        position = self.candidates.index(found)
        return Choice(found, position + 1, any(verdict.is_kv_skip for verdict in self.verdicts[:position]))


class PulsarWaitAndWidenWithoutWaits(PulsarWaitAndWiden):
    """The form of the release line 0.11."""

    def balancer(self, routing_key: str | None, model: str) -> "ImmediateBandsBalancer":
        """A balancer with a ranking of its own."""
        return ImmediateBandsBalancer(self, RendezvousRanking(prefix(self.settings.seed, routing_key, model)))

    def band(self, rank: int) -> int:
        """The band of a 1-based rank: 0 is the first rank alone."""
        return rank.bit_length() - 1


class ImmediateBandsBalancer(PulsarWaitAndWidenBalancer):
    """Asks bands of 1, 2, 4, ... of the ranking in one decision, each after the one before has no choice."""

    def choose(
        self, request: RoutingRequest, candidates: Sequence[Candidate], excluded: Collection[str], elapsed_ms: float
    ) -> Choice | None:
        """The first-ranked candidate if no rule excludes it, else a choice band by band."""
        algorithm = self._algorithm
        ranked = _ranked(algorithm, self._ranking.ranked(request.affinity_key, candidates), request, excluded)
        if ranked is None or isinstance(ranked, Choice):
            return ranked
        for start, stop in bands(len(ranked.candidates)):
            band = ranked.eligible(stop, start)
            found = widen(algorithm.widening, request, band, (), elapsed_ms, elapsed_ms, less_loaded, algorithm.random)
            if found is not None and not isinstance(found, Wait):
                return ranked.choice(found)
        return None

    def details(
        self,
        request: RoutingRequest,  # noqa: ARG002 - the same for every request
        candidates: Sequence[Candidate],  # noqa: ARG002
        elapsed_ms: float,  # noqa: ARG002
    ) -> dict[str, object] | None:
        """Nothing: there is no group and no wait."""
        return None


ALGORITHM: Final = registration(
    "pulsar-wait-and-widen",
    PulsarWaitAndWidenSettings.read,
    PulsarWaitAndWiden,
    aliases=("pulsar-multiregion",),
    position=5,
    earlier=registration(
        "pulsar-wait-and-widen", PulsarWaitAndWidenSettings.read_without_wait, PulsarWaitAndWidenWithoutWaits
    ),
)
