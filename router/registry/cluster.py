"""The routable workers of one cluster for one target: their aggregate, their round-robin order, and reservations on them.

Source: docs/control-plane.md, "Aggregates" and "Reservations". Totals are updated at each change, so that the cost of a
report and of a snapshot does not grow with the number of workers.
"""

from bisect import bisect_left
from collections.abc import Callable, Collection, Mapping
from math import isfinite

from router.registry.backend import Backend
from router.registry.exact_sum import ExactSum
from router.registry.mean_queue_times import MeanQueueTimes
from router.registry.registration import ClusterGeneration, Registration
from router.registry.reservations import Reservation, Reservations
from router.registry.settings import CURRENT, RegistrySettings
from router.registry.stats import ModelStats
from tunnel_protocol.unsigned import MAX_U64


class Snapshot:
    """One cluster at one moment: the aggregate of its workers with pending reservations added. Immutable."""

    __slots__ = (
        "active_backend_count",
        "cluster",
        "cluster_id",
        "has_free_slot",
        "input_processing_queries",
        "kv_cache_capacity_tokens",
        "kv_cache_free_tokens",
        "kv_cache_used_tokens",
        "last_mean_input_tps",
        "max_engine_concurrency",
        "max_output_tps",
        "num_running_queries",
        "output_generation_queries",
        "output_tps",
        "queue_size",
        "queue_time_estimate_ms_by_priority",
        "queued_input_size",
        "received_at",
        "rtt_ns",
        "total_query_input_size",
    )

    cluster_id: str
    cluster: "RoutedCluster"
    rtt_ns: int
    active_backend_count: int
    received_at: float
    last_mean_input_tps: float
    output_tps: float
    max_output_tps: float
    queue_size: int
    queued_input_size: int
    num_running_queries: int
    max_engine_concurrency: int
    has_free_slot: bool
    total_query_input_size: int
    kv_cache_capacity_tokens: int
    kv_cache_used_tokens: int
    kv_cache_free_tokens: int
    input_processing_queries: int
    output_generation_queries: int
    queue_time_estimate_ms_by_priority: Mapping[int, int]


class RoutedCluster:
    """One cluster of one target, from its first routable worker to its last. Requests that chose it may hold it longer."""

    __slots__ = (
        "_backends",
        "_generation_queries",
        "_input_tps",
        "_max_output_tps",
        "_mean_queue_times",
        "_odd_output_tps",
        "_on_change",
        "_output_tps",
        "_picks",
        "_processing_queries",
        "_queue_size",
        "_queued_input_size",
        "_reservations",
        "_rtt_ns",
        "_running_queries",
        "_server_ids",
        "_settings",
        "_source",
        "_total_input_size",
        "cluster_id",
        "generation",
        "stale",
    )

    def __init__(
        self, first: Backend, on_change: "Callable[[RoutedCluster], None]", settings: RegistrySettings = CURRENT
    ) -> None:
        self._on_change = on_change
        self._settings = settings
        self.cluster_id = first.registration.identity.cluster_id
        self.generation: ClusterGeneration = first.registration.generation
        self.stale = True
        """True from a change until the target has taken a new snapshot."""
        self._server_ids: list[str] = []
        self._backends: list[Backend] = []
        self._source = first
        self._picks = 0
        self._reservations = Reservations(self._reservations_changed)
        self._rtt_ns = 0
        self._input_tps = ExactSum()
        self._output_tps = ExactSum()
        self._odd_output_tps = 0
        self._queue_size = 0
        self._queued_input_size = 0
        self._processing_queries = 0
        self._generation_queries = 0
        self._running_queries = 0
        self._total_input_size = 0
        # None = not known: the worker that had it has gone or reports less now.
        self._max_output_tps: float | None = 0.0
        # None while the only worker's own queue times are those of the cluster.
        self._mean_queue_times: MeanQueueTimes | None = None
        self.publish(first)

    def __len__(self) -> int:
        return len(self._backends)

    def publish(self, backend: Backend) -> bool:
        """Insert or replace the backend of a worker; its reservations are dropped. True if the worker is new here."""
        server_id = backend.inference_server_id
        index = bisect_left(self._server_ids, server_id)
        new = index == len(self._server_ids) or self._server_ids[index] != server_id
        if not new and self._backends[index].stats is backend.stats:
            # The worker reports what it reported before: only its round trip may have changed.
            self._rtt_ns += backend.rtt_ns - self._backends[index].rtt_ns
            self._backends[index] = self._source = backend
            self._reservations.drop_server(server_id)
            return False
        self._note_statistics(None if new else self._backends[index].stats, backend.stats)
        if new:
            self._server_ids.insert(index, server_id)
            self._backends.insert(index, backend)
        else:
            self._count(self._backends[index], -1)
            self._backends[index] = backend
            self._reservations.drop_server(server_id)
        self._count(backend, 1)
        self._source = backend
        if new and len(self._backends) == 2 and self._settings.adds_up_load:
            self._mean_queue_times = means = MeanQueueTimes()
            for each in self._backends:
                means.add(each.stats)
        return new

    def withdraw(self, registration: Registration) -> bool:
        """Remove the backend that this registration published. True if there was one."""
        backend = self._backend_of(registration)
        if backend is None:
            return False
        server_id = registration.identity.inference_server_id
        index = bisect_left(self._server_ids, server_id)
        del self._server_ids[index]
        del self._backends[index]
        self._count(backend, -1)
        self._note_statistics(backend.stats, None)
        self._reservations.drop_server(server_id)
        if len(self._backends) == 1:
            self._mean_queue_times = None
        if backend is self._source and self._backends:
            self._source = max(self._backends, key=lambda left: (left.received_at, left.inference_server_id))
        return True

    def clear(self) -> None:
        """Remove every worker, after the end of the generation."""
        self._server_ids.clear()
        self._backends.clear()
        self._reservations.drop_all()

    def pick(self, excluded_backend_ids: Collection[str]) -> Backend | None:
        """The next worker in id order that is not excluded, or None; every call advances the round-robin counter."""
        eligible = self._backends
        if excluded_backend_ids:
            eligible = [each for each in eligible if each.inference_server_id not in excluded_backend_ids]
        if not eligible:
            return None
        picked = eligible[self._picks % len(eligible)]
        self._picks += 1
        return picked

    def reserve(self, backend: Backend, input_tokens: int, priority: int) -> Reservation | None:
        """Reserve one attempt's work on the worker until its next report; None if its registration has ended."""
        if self._backend_of(backend.registration) is None:
            return None
        reservation = Reservation(self._reservations, backend.inference_server_id, input_tokens, priority)
        self._reservations.add(reservation)
        self._on_change(self)
        return reservation

    def backends(self) -> tuple[Backend, ...]:
        """All routable workers, sorted by id."""
        return tuple(self._backends)

    def stats_observed_at_unix_ms(self) -> int:
        """The latest observation time of the workers in Unix milliseconds, by their own clocks."""
        return max((each.stats.stats_observed_at_unix_ms for each in self._backends), default=0)

    def stats_capabilities(self) -> tuple[str, ...]:
        """The capability labels of all workers, in the order of first occurrence."""
        return tuple(dict.fromkeys(label for each in self._backends for label in each.stats.stats_capabilities))

    def stats_sources(self) -> tuple[str, ...]:
        """The source labels of all workers, in the order of first occurrence."""
        return tuple(dict.fromkeys(label for each in self._backends for label in each.stats.stats_sources))

    def snapshot(self) -> Snapshot:
        """The current aggregate with pending reservations added; requires at least one worker."""
        source = self._source.stats
        pending = self._reservations
        input_tps = self._input_tps.value()
        snapshot = Snapshot()
        snapshot.cluster_id = self.cluster_id
        snapshot.cluster = self
        snapshot.active_backend_count = len(self._backends)
        snapshot.rtt_ns = self._rtt_ns // len(self._backends)
        snapshot.received_at = self._source.received_at
        snapshot.last_mean_input_tps = input_tps
        snapshot.output_tps = self._summed_output_tps()
        snapshot.queue_size = min(self._queue_size + pending.count, MAX_U64)
        snapshot.queued_input_size = min(self._queued_input_size + pending.tokens, MAX_U64)
        snapshot.max_engine_concurrency = source.max_engine_concurrency
        snapshot.kv_cache_capacity_tokens = source.kv_cache_capacity_tokens
        snapshot.kv_cache_used_tokens = source.kv_cache_used_tokens
        snapshot.kv_cache_free_tokens = source.kv_cache_free_tokens
        snapshot.input_processing_queries = min(self._processing_queries, MAX_U64)
        snapshot.output_generation_queries = min(self._generation_queries, MAX_U64)
        if self._settings.adds_up_load:
            running, total_input = self._running_queries, self._total_input_size
            snapshot.max_output_tps = self._best_output_tps()
        else:
            running, total_input = source.num_running_queries, source.total_query_input_size
            snapshot.max_output_tps = source.max_output_tps
        snapshot.num_running_queries = min(running + pending.count, MAX_U64)
        snapshot.has_free_slot = (
            self._settings.free_slots and snapshot.num_running_queries < snapshot.max_engine_concurrency
        )
        snapshot.total_query_input_size = min(total_input + pending.tokens, MAX_U64)
        means = self._mean_queue_times
        snapshot.queue_time_estimate_ms_by_priority = pending.queue_times(
            source.queue_time_estimate_ms_by_priority if means is None else means.value(), input_tps
        )
        return snapshot

    def _reservations_changed(self) -> None:
        self._on_change(self)

    def _backend_of(self, registration: Registration) -> Backend | None:
        server_id = registration.identity.inference_server_id
        index = bisect_left(self._server_ids, server_id)
        if index < len(self._backends) and self._backends[index].registration is registration:
            return self._backends[index]
        return None

    def _count(self, backend: Backend, sign: int) -> None:
        stats = backend.stats
        self._rtt_ns += sign * backend.rtt_ns
        self._queue_size += sign * stats.queue_size
        self._queued_input_size += sign * stats.queued_input_size
        self._processing_queries += sign * stats.input_processing_queries
        self._generation_queries += sign * stats.output_generation_queries
        if stats.last_mean_input_tps > 0 and isfinite(stats.last_mean_input_tps):
            self._input_tps.add(stats.last_mean_input_tps, sign)
        self._running_queries += sign * stats.num_running_queries
        self._total_input_size += sign * stats.total_query_input_size
        if isfinite(stats.output_tps):
            if stats.output_tps >= 0.0 or not self._settings.adds_up_load:
                self._output_tps.add(stats.output_tps, sign)
        elif not self._settings.adds_up_load:
            self._odd_output_tps += sign

    def _note_statistics(self, before: ModelStats | None, now: ModelStats | None) -> None:
        """Keep what is no sum up to date when statistics take the place of others, without a look at all workers."""
        means = self._mean_queue_times
        if means is not None:
            # The new ones first: a priority that both have stays known.
            if now is not None:
                means.add(now)
            if before is not None:
                means.add(before, -1)
        best = self._max_output_tps
        if best is None:
            return
        if now is not None and _valid(now.max_output_tps) >= best:
            self._max_output_tps = _valid(now.max_output_tps)
        elif before is not None and _valid(before.max_output_tps) == best:
            self._max_output_tps = None

    def _best_output_tps(self) -> float:
        best = self._max_output_tps
        if best is None:
            best = self._max_output_tps = max(_valid(each.stats.max_output_tps) for each in self._backends)
        return best

    def _summed_output_tps(self) -> float:
        if self._odd_output_tps:
            # Infinity and NaN cannot be subtracted from a running sum, so the sum is computed anew; only faulty workers
            # report such values.
            return sum(each.stats.output_tps for each in self._backends)
        return self._output_tps.value()


def _valid(rate: float) -> float:
    """The rate if it is finite and positive, else 0."""
    return rate if rate > 0.0 and isfinite(rate) else 0.0
