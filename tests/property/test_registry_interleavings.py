"""The registry under random interleavings, against a slow model that recomputes everything from scratch after every step."""

import math
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, multiple, rule

from router.registry import (
    AlreadyRegisteredError,
    Backend,
    Identity,
    ModelStats,
    ModelUpdate,
    Registration,
    Registry,
    Reservation,
    RoutedCluster,
    Target,
    TargetKey,
)
from router.registry.exact_sum import ExactSum
from router.registry.settings import CURRENT, RegistrySettings
from tunnel_protocol.unsigned import MAX_U64

IDS = ("a", "b", "c", "d")
CLUSTERS = ("a", "x")
KEYS = (None, "k")
MODELS = ("m", "n")
MOSTLY = st.sampled_from([True, True, True, True, False])

counters = st.one_of(st.integers(0, 50), st.sampled_from([MAX_U64, MAX_U64 - 3]))
rates = st.one_of(
    st.sampled_from([0.0, 100.0, 0.1, math.inf, math.nan, -1.0, 5e-324, 1e308]), st.floats(0.01, 1e6, allow_nan=False)
)
estimates = st.dictionaries(st.integers(0, 6), st.one_of(st.integers(0, 500), st.just(MAX_U64)), max_size=4)
all_stats = st.builds(
    ModelStats,
    last_mean_input_tps=rates,
    output_tps=rates,
    max_output_tps=rates,
    queue_size=counters,
    queued_input_size=counters,
    num_running_queries=counters,
    total_query_input_size=counters,
    kv_cache_free_tokens=counters,
    queue_time_estimate_ms_by_priority=estimates,
    input_processing_queries=counters,
    stats_observed_at_unix_ms=counters,
    stats_capabilities=st.lists(st.sampled_from("pqr"), max_size=3).map(tuple),
)
updates = st.builds(ModelUpdate, MOSTLY, st.one_of(all_stats, all_stats, all_stats, st.none()))
reports = st.dictionaries(st.sampled_from(MODELS), updates, min_size=1, max_size=2)
round_trips = st.one_of(st.integers(0, 10**12), st.integers(0, 100), st.just(0), st.none())


class Tunnel:
    """A registration's own tunnel, up or down."""

    def __init__(self) -> None:
        self.up = True


@dataclass
class Entry:
    """What one registration has published for one target, in the model."""

    stats: ModelStats
    rtt_ns: int
    order: int


@dataclass
class Worker:
    """One registration in the model."""

    registration: Registration
    tunnel: Tunnel
    advertised: set[str] = field(default_factory=set)
    published: dict[str, Entry] = field(default_factory=dict)
    last_report: dict[str, ModelUpdate] = field(default_factory=dict)
    live: bool = True

    @property
    def identity(self) -> Identity:
        return self.registration.identity


@dataclass
class Pending:
    """One reservation in the model."""

    reservation: Reservation
    worker: Worker
    model: str
    tokens: int
    priority: int


class Interleavings(RuleBasedStateMachine):
    counted: RegistrySettings = CURRENT
    workers = Bundle("workers")
    choices = Bundle("choices")
    reservations = Bundle("reservations")

    def __init__(self) -> None:
        super().__init__()
        self.counts: dict[TargetKey, int] = {}
        self.registry = Registry(self.counts.__setitem__, self.counted)
        self.model: list[Worker] = []
        self.pending: list[Pending] = []
        self.reserved: list[Reservation] = []
        self.order = 0
        # Which worker the aggregate's unsummed figures come from, per (key, model, cluster).
        self.sources: dict[tuple[TargetKey, str], Worker] = {}
        self.targets_seen: dict[TargetKey, Target] = {}

    # Steps

    @rule(
        target=workers,
        server_id=st.sampled_from(IDS),
        cluster_id=st.sampled_from(CLUSTERS),
        routing_key=st.sampled_from((None, None, None, "k")),
    )
    def register(self, server_id: str, cluster_id: str, routing_key: str | None) -> Any:
        identity = Identity(server_id, cluster_id, "quic://10.0.0.1:1", routing_key, reverse=True)
        tunnel = Tunnel()
        holder = [worker for worker in self.model if worker.live and worker.identity.inference_server_id == server_id]
        try:
            registration = self.registry.begin(identity, tunnel)  # type: ignore[arg-type]
        except AlreadyRegisteredError as error:
            refused_for: Registration | None = error.existing
        else:
            refused_for = None
        assert [worker.registration for worker in holder] == ([] if refused_for is None else [refused_for])
        if refused_for is not None:
            return multiple()
        worker = Worker(registration, tunnel)
        self.model.append(worker)
        return worker

    @rule(worker=workers, report=reports, rtt_ns=round_trips)
    def update(self, worker: Worker, report: dict[str, ModelUpdate], rtt_ns: int | None) -> None:
        worker.last_report = report
        self._apply(worker, rtt_ns)

    @rule(worker=workers)
    def tunnel_goes_down(self, worker: Worker) -> None:
        worker.tunnel.up = False
        self.registry.withdraw(worker.registration)
        if worker.live:
            for model in list(worker.published):
                self._unpublish(worker, model)

    @rule(worker=workers, rtt_ns=st.integers(0, 10**9))
    def tunnel_comes_up(self, worker: Worker, rtt_ns: int) -> None:
        worker.tunnel.up = True
        self._apply(worker, rtt_ns)

    @rule(worker=workers)
    def end(self, worker: Worker) -> None:
        self.registry.end(worker.registration)
        if worker.live:
            worker.live = False
            worker.advertised.clear()
            for model in list(worker.published):
                self._unpublish(worker, model)

    @rule(
        target=choices, key=st.sampled_from(KEYS), model=st.sampled_from(MODELS), excluded=st.sets(st.sampled_from(IDS))
    )
    def choose(self, key: str | None, model: str, excluded: set[str]) -> Any:
        target = self.registry.target(TargetKey(key, model))
        if target is None:
            return multiple()
        chosen = []
        for candidate in target.candidates():
            backend = candidate.cluster.pick(excluded)
            if backend is None:
                members = {each.inference_server_id for each in candidate.cluster.backends()}
                assert members <= excluded
            else:
                assert backend.inference_server_id not in excluded
                chosen.append((candidate.cluster, backend, model))
        return multiple(*chosen)

    @rule(
        target=reservations,
        choice=choices,
        tokens=st.one_of(st.integers(0, 300), st.just(MAX_U64)),
        priority=st.integers(0, 6),
    )
    def reserve(self, choice: tuple[RoutedCluster, Backend, str], tokens: int, priority: int) -> Any:
        cluster, backend, model = choice
        reservation = cluster.reserve(backend, tokens, priority)
        worker = next(each for each in self.model if each.registration is backend.registration)
        # A choice grows stale when its cluster or its registration was replaced meanwhile.
        current = self._cluster_of(worker, model)
        if not (worker.live and model in worker.published and current is cluster):
            assert reservation is None
            return multiple()
        assert reservation is not None
        self.pending.append(Pending(reservation, worker, model, tokens, priority))
        self.reserved.append(reservation)
        return reservation

    @rule(reservation=reservations)
    def release(self, reservation: Reservation) -> None:
        reservation.release()
        self.pending = [each for each in self.pending if each.reservation is not reservation]

    # The model

    def _apply(self, worker: Worker, rtt_ns: int | None) -> None:
        report = worker.last_report
        self.order += 1
        self.registry.apply(
            worker.registration, report, connected=worker.tunnel.up, rtt_ns=rtt_ns, now=float(self.order)
        )
        if not worker.live:
            return
        worker.advertised = set(report)
        for model in set(worker.published) - set(report):
            self._unpublish(worker, model)
        for model, update in report.items():
            if update.active and update.stats is not None and worker.tunnel.up and rtt_ns is not None:
                self._forget_pending(worker, model)
                worker.published[model] = Entry(update.stats, rtt_ns, self.order)
                self.sources[self._place(worker, model)] = worker
            elif model in worker.published:
                self._unpublish(worker, model)

    def _unpublish(self, worker: Worker, model: str) -> None:
        del worker.published[model]
        self._forget_pending(worker, model)
        place = self._place(worker, model)
        left = self._members(*place)
        if self.sources.get(place) is worker and left:
            self.sources[place] = max(
                left, key=lambda each: (each.published[model].order, each.identity.inference_server_id)
            )

    def _forget_pending(self, worker: Worker, model: str) -> None:
        self.pending = [each for each in self.pending if not (each.worker is worker and each.model == model)]

    def _place(self, worker: Worker, model: str) -> tuple[TargetKey, str]:
        return TargetKey(worker.identity.routing_key, model), worker.identity.cluster_id

    def _members(self, key: TargetKey, cluster_id: str) -> list[Worker]:
        return sorted(
            (
                worker
                for worker in self.model
                if key.model in worker.published and self._place(worker, key.model) == (key, cluster_id)
            ),
            key=lambda worker: worker.identity.inference_server_id,
        )

    def _cluster_of(self, worker: Worker, model: str) -> RoutedCluster | None:
        target = self.registry.target(TargetKey(worker.identity.routing_key, model))
        clusters = [each.cluster for each in target.candidates()] if target is not None else []
        return next((each for each in clusters if each.cluster_id == worker.identity.cluster_id), None)

    # Invariants

    @invariant()
    def ids_are_unique_and_advertising_is_counted(self) -> None:
        live = [worker for worker in self.model if worker.live]
        assert self.registry.registrations() == [worker.registration for worker in live]
        for worker in live:
            assert self.registry.live(worker.identity.inference_server_id) is worker.registration
        for routing_key in KEYS:
            for model in MODELS:
                advertised = any(w.identity.routing_key == routing_key and model in w.advertised for w in live)
                assert self.registry.is_advertised(TargetKey(routing_key, model)) == advertised

    @invariant()
    def nothing_is_routable_without_its_own_healthy_tunnel(self) -> None:
        for target in self.registry.targets():
            for shown in target.candidates():
                cluster = shown.cluster
                for backend in cluster.backends():
                    worker = next(each for each in self.model if each.registration is backend.registration)
                    assert worker.live
                    assert worker.tunnel.up
                    assert backend.registration.tunnels is worker.tunnel  # type: ignore[comparison-overlap]
                    assert backend.registration.generation is cluster.generation
                    assert not cluster.generation.retired

    @invariant()
    def aggregates_equal_a_recomputation(self) -> None:
        for routing_key in KEYS:
            for model in MODELS:
                key = TargetKey(routing_key, model)
                expected = {
                    cluster_id: members for cluster_id in CLUSTERS if (members := self._members(key, cluster_id))
                }
                target = self.registry.target(key)
                assert (target is not None) == bool(expected)
                if key in self.targets_seen and self.targets_seen[key] is not target:
                    assert self.targets_seen.pop(key).retired
                total = sum(map(len, expected.values()))
                assert self.counts.get(key, 0) == total
                if target is not None:
                    self.targets_seen[key] = target
                    assert target.active_count == total
                    shown = target.candidates()
                    assert [each.cluster_id for each in shown] == sorted(expected)
                    for snapshot in shown:
                        self._check(snapshot, key, expected[snapshot.cluster_id])

    @invariant()
    def listing_equals_what_is_routable(self) -> None:
        for routing_key in KEYS:
            routable = {model for w in self.model if w.identity.routing_key == routing_key for model in w.published}
            assert self.registry.active_models(routing_key) == sorted(routable)
        assert self.registry.all_active_models() == sorted({model for w in self.model for model in w.published})

    @invariant()
    def reservations_live_exactly_as_long_as_their_rule_says(self) -> None:
        live = {id(each) for each in self.reserved if each.live}
        assert live == {id(each.reservation) for each in self.pending}

    def _check(self, snapshot: Any, key: TargetKey, members: list[Worker]) -> None:
        entries = [worker.published[key.model] for worker in members]
        source = self.sources[(key, snapshot.cluster_id)].published[key.model]
        pending = [
            each
            for each in self.pending
            if each.model == key.model
            and each.worker.identity.routing_key == key.routing_key
            and each.worker.identity.cluster_id == snapshot.cluster_id
        ]
        tokens = sum(each.tokens for each in pending)
        assert snapshot.active_backend_count == len(entries)
        assert snapshot.rtt_ns == sum(entry.rtt_ns for entry in entries) // len(entries)
        assert snapshot.received_at == float(source.order)
        tps = _float_sum(e.stats.last_mean_input_tps for e in entries if 0 < e.stats.last_mean_input_tps < math.inf)
        assert snapshot.last_mean_input_tps == tps
        self._check_load(snapshot, entries, source, len(pending), tokens)
        for name, added in (
            ("queue_size", len(pending)),
            ("queued_input_size", tokens),
            ("input_processing_queries", 0),
        ):
            assert getattr(snapshot, name) == min(MAX_U64, sum(getattr(e.stats, name) for e in entries) + added)
        assert snapshot.kv_cache_free_tokens == source.stats.kv_cache_free_tokens
        assert snapshot.cluster.stats_observed_at_unix_ms() == max(e.stats.stats_observed_at_unix_ms for e in entries)
        labels = [label for entry in entries for label in entry.stats.stats_capabilities]
        assert snapshot.cluster.stats_capabilities() == tuple(dict.fromkeys(labels))
        replayed = dict(source.stats.queue_time_estimate_ms_by_priority)
        if self.counted.adds_up_load and len(entries) > 1:
            replayed = _mean_queue_times([entry.stats for entry in entries])
        for each in pending:
            replayed = _replay(replayed, each.tokens, each.priority, tps)
        assert dict(snapshot.queue_time_estimate_ms_by_priority) == replayed
        assert list(snapshot.queue_time_estimate_ms_by_priority) == sorted(replayed)

    def _check_load(self, snapshot: Any, entries: list[Entry], source: Entry, count: int, tokens: int) -> None:
        together = entries if self.counted.adds_up_load else [source]
        for name, added in (("num_running_queries", count), ("total_query_input_size", tokens)):
            assert getattr(snapshot, name) == min(MAX_U64, sum(getattr(e.stats, name) for e in together) + added)
        output = [entry.stats.output_tps for entry in entries]
        best = source.stats.max_output_tps
        if self.counted.adds_up_load:
            output = [each for each in output if 0 <= each < math.inf]
            best = max(each if 0 < each < math.inf else 0.0 for each in (e.stats.max_output_tps for e in entries))
        assert _same(snapshot.output_tps, _float_sum(output))
        assert _same(snapshot.max_output_tps, best)


def _mean_queue_times(workers: list[ModelStats]) -> dict[int, int]:
    """The weighted queue times, the slow way."""
    total, silent = Fraction(0), False
    priorities: set[int] = set()
    for stats in workers:
        valid = 0 < stats.last_mean_input_tps < math.inf
        busy = bool(stats.queue_size or stats.queued_input_size)
        silent |= busy and not (valid and stats.queue_time_estimate_ms_by_priority)
        total += Fraction(stats.last_mean_input_tps) if valid else 0
        priorities |= stats.queue_time_estimate_ms_by_priority.keys()
    if silent or not total:
        return {}
    found = {}
    for priority in sorted(priorities):
        weighted = Fraction(0)
        for stats in workers:
            own = stats.queue_time_estimate_ms_by_priority
            lower = [each for each in own if each <= priority]
            if lower and 0 < stats.last_mean_input_tps < math.inf and (stats.queue_size or stats.queued_input_size):
                weighted += Fraction(stats.last_mean_input_tps) * own[max(lower)]
        found[priority] = math.ceil(weighted / total)
    return found


def _replay(estimates: dict[int, int], tokens: int, priority: int, tps: float) -> dict[int, int]:
    """One reservation put onto a map, the slow way."""
    if not estimates:
        return {}
    delta = 0.0
    if tokens:
        if not 0 < tps < math.inf:
            return {}
        delta = tokens / tps * 1000.0
        if delta > 2.0**64:
            return {}
    whole = min(math.ceil(delta), MAX_U64)
    if priority not in estimates:
        lower = [each for each in estimates if each < priority]
        estimates = {**estimates, priority: estimates[max(lower)] if lower else 0}
    return {p: min(MAX_U64, ms + whole) if p >= priority else ms for p, ms in estimates.items()}


def _float_sum(values: Any) -> float:
    values = list(values)
    if not all(map(math.isfinite, values)):
        return sum(values)
    try:
        return math.fsum(values)
    except OverflowError:
        return math.inf


def _same(one: float, other: float) -> bool:
    return one == other or (math.isnan(one) and math.isnan(other))


class InterleavingsByTheLastReport(Interleavings):
    """With the figures of a cluster as of the reference's 0.11."""

    counted = RegistrySettings(adds_up_load=False, free_slots=False)


TestInterleavings = Interleavings.TestCase
TestInterleavingsByTheLastReport = InterleavingsByTheLastReport.TestCase
TestInterleavings.settings = settings(
    max_examples=100, stateful_step_count=60, deadline=None, suppress_health_check=list(HealthCheck)
)
TestInterleavingsByTheLastReport.settings = settings(
    max_examples=50, stateful_step_count=60, deadline=None, suppress_health_check=list(HealthCheck)
)


@given(st.lists(st.tuples(st.floats(allow_nan=False, allow_infinity=False), st.booleans()), max_size=30))
def test_exact_sum_equals_the_correctly_rounded_sum_of_what_is_left(steps: list[tuple[float, bool]]) -> None:
    total = ExactSum()
    left: list[float] = []
    for term, take_out in steps:
        if take_out and left:
            total.add(left.pop(len(left) // 2), -1)
        else:
            left.append(term)
            total.add(term)
    if abs(sum(map(lambda each: each / 64, left))) < 1e300:  # noqa: C417 (fsum refuses intermediate overflow)
        assert total.value() == math.fsum(left)
