"""Computes the state of one process for the pages of the operators, from the registry and the metrics, when somebody asks.

Nothing here runs for a request or a report: the figures are those that are kept anyway.
"""

import time
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

from router.operators.live_document import (
    ROWS,
    SECONDS,
    Certificate,
    Cluster,
    Flow,
    Live,
    Policy,
    Process,
    Router,
    State,
    Target,
    Worker,
)
from router.operators.request_log import RequestLog
from router.registry import Backend, Registration, Registry, TargetKey
from router.telemetry.metrics import Metrics

_ROWS: Final = ROWS.pieces or 0
_MODELS: Final = 20
"""Models that the row of a worker names."""
_REFUSALS: Final = ("upstream_429", "upstream_503")
_OWN_REFUSALS: Final = ("429", "503")
_RATE_WITHIN_S: Final = 5.0
"""A rate is told if the last look was less than these seconds ago."""

Placed = tuple[str | None, str, str]
"""Routing key, model, and worker or nothing."""


class RouterFacts(NamedTuple):
    """What the collector cannot read from registry and metrics."""

    stargate_id: str
    version: str
    commit: str
    started_at: float
    """Unix seconds."""
    not_ready: Callable[[], list[str]]
    draining: Callable[[], bool]
    policy: Callable[[], Policy]
    certificates: Callable[[], list[Certificate]]
    in_flight: Callable[[], Iterable[Placed]]


class _Load:
    """The requests that are in flight: of each target and of each worker, and of each pair."""

    def __init__(self, placed: Iterable[Placed]) -> None:
        self.total = 0
        self.waiting = 0
        self.targets: dict[TargetKey, int] = {}
        self.workers: dict[str, int] = {}
        self.pairs: dict[tuple[str, str, str], int] = {}
        for routing_key, model, server_id in placed:
            self.total += 1
            self.waiting += not server_id
            key = TargetKey(routing_key, model)
            pair = (routing_key or "", model, server_id)
            self.targets[key] = self.targets.get(key, 0) + 1
            self.workers[server_id] = self.workers.get(server_id, 0) + 1
            self.pairs[pair] = self.pairs.get(pair, 0) + 1


class StateCollector:
    """The state of one process; `live` may be called at any time."""

    def __init__(
        self,
        registry: Registry,
        metrics: Metrics,
        log: RequestLog,
        facts: RouterFacts,
        *,
        loop_clock: Callable[[], float],
        clock: Callable[[], float] = time.monotonic,
        unix_clock: Callable[[], float] = time.time,
    ) -> None:
        """`loop_clock` is that of the tunnels, `clock` that of the registry."""
        self._registry = registry
        self._metrics = metrics
        self._log = log
        self._facts = facts
        self._loop_clock = loop_clock
        self._clock = clock
        self._unix_clock = unix_clock
        self._answered: dict[tuple[str, str, str], float] = {}
        self._answered_at = float("-inf")

    async def read(self) -> Live:
        """See `LiveSource`."""
        return self.live()

    def live(self, *, countable: bool = False) -> Live:
        """State, history and last requests now; `countable`: see `RequestLog.history`."""
        return Live(
            state=self.state(), history=self._log.history(SECONDS, countable=countable), requests=self._log.requests()
        )

    def state(self) -> State:
        """The state now."""
        load = _Load(self._facts.in_flight())
        backends: dict[Registration, list[Backend]] = {}
        clusters: dict[tuple[str | None, str], Cluster] = {}
        routable: dict[TargetKey, int] = {}
        for target in self._registry.targets():
            routable[target.key] = target.active_count
            for snapshot in target.candidates():
                for backend in snapshot.cluster.backends():
                    backends.setdefault(backend.registration, []).append(backend)
        registrations = self._registry.registrations()
        attempts = self._attempts()
        workers = [self._worker(each, backends.get(each, []), attempts, load) for each in registrations]
        for worker in workers:
            _add_to_cluster(clusters, worker)
        targets = self._targets(registrations, routable, load)
        flows = self._flows(load)
        tables: tuple[list[Target], list[Cluster], list[Worker], list[Flow]] = (
            targets,
            [_finished(cluster) for cluster in clusters.values()],
            workers,
            flows,
        )
        return State(
            router=self._router(load),
            policy=self._facts.policy(),
            certificates=self._facts.certificates(),
            targets=sorted(targets[:_ROWS], key=lambda one: (one.model, one.routing_key or "")),
            clusters=sorted(tables[1][:_ROWS], key=lambda one: (one.cluster_id, one.routing_key or "")),
            workers=sorted(workers[:_ROWS], key=lambda one: one.inference_server_id),
            flows=flows[:_ROWS],
            left_out=sum(max(len(table) - _ROWS, 0) for table in tables),
        )

    def _router(self, load: _Load) -> Router:
        facts, now = self._facts, self._unix_clock()
        not_ready = facts.not_ready()
        return Router(
            stargate_id=facts.stargate_id,
            version=facts.version,
            commit=facts.commit,
            now=round(now, 3),
            started_at=round(facts.started_at, 3),
            uptime_s=round(max(now - facts.started_at, 0.0), 3),
            ready=not not_ready,
            not_ready=not_ready,
            draining=facts.draining(),
            in_flight=load.total,
            waiting=load.waiting,
            processes=[Process(stargate_id=facts.stargate_id, serving=True)],
        )

    def _worker(
        self, registration: Registration, backends: list[Backend], attempts: dict[str, list[int]], load: _Load
    ) -> Worker:
        identity, tunnels = registration.identity, registration.tunnels
        silent_since = tunnels.silent_since()
        connected = tunnels.healthy()
        if not connected:
            state = "disconnected"
        elif silent_since is not None:
            state = "silent"
        else:
            state = "healthy" if backends else "inactive"
        stats = [backend.stats for backend in backends]
        latest = max(backends, key=lambda one: one.received_at, default=None)
        server_id = identity.inference_server_id
        answered, refusals, failures = attempts.get(server_id, (0, 0, 0))
        return Worker(
            inference_server_id=server_id,
            cluster_id=identity.cluster_id,
            routing_key=identity.routing_key,
            url=identity.url,
            connectivity="reverse" if identity.reverse else "direct",
            state=state,
            silent_s=None if silent_since is None else round(self._loop_clock() - silent_since, 1),
            rtt_ms=None if latest is None else round(latest.rtt_ns / 1e6, 3),
            report_age_s=None if latest is None else round(self._clock() - latest.received_at, 1),
            queue=sum(one.queue_size for one in stats),
            running=sum(one.num_running_queries for one in stats),
            max_running=sum(one.max_engine_concurrency for one in stats),
            output_tps=_rate(sum(one.output_tps for one in stats)),
            input_tps=_rate(sum(one.last_mean_input_tps for one in stats)),
            kv_used_tokens=sum(one.kv_cache_used_tokens for one in stats),
            kv_capacity_tokens=sum(one.kv_cache_capacity_tokens for one in stats),
            free_streams=tunnels.free_streams() if connected else 0,
            in_flight=load.workers.get(server_id, 0),
            attempts=answered,
            refusals=refusals,
            failures=failures,
            models=sorted(registration.models)[:_MODELS],
            models_total=len(registration.models),
            healthy_in=int(state == "healthy"),
        )

    def _attempts(self) -> dict[str, list[int]]:
        """Of each worker: attempts, refusals, failures."""
        found: dict[str, list[int]] = {}
        for (_, _, server_id, result), value in self._metrics.proxy_attempts_total.values():
            counts = found.setdefault(server_id, [0, 0, 0])
            counts[0] += int(value)
            if result in _REFUSALS:
                counts[1] += int(value)
            elif result == "proxy_502" or result.startswith("upstream_5"):
                counts[2] += int(value)
        return found

    def _targets(self, registrations: list[Registration], routable: dict[TargetKey, int], load: _Load) -> list[Target]:
        registered: dict[TargetKey, int] = {}
        for registration in registrations:
            for model in registration.models:
                key = TargetKey(registration.identity.routing_key, model)
                registered[key] = registered.get(key, 0) + 1
        counts: dict[tuple[str, str], list[int]] = {}
        for (routing_key, model, server_id, status), value in self._metrics.requests_total.values():
            count = counts.setdefault((routing_key, model), [0, 0, 0])
            count[0] += int(value)
            if status >= "500" and len(status) == 3:
                count[1] += int(value)
            if not server_id and status in _OWN_REFUSALS:
                count[2] += int(value)
        rows = []
        for key, workers in registered.items():
            requests, errors, refused = counts.get((key.routing_key or "", key.model), (0, 0, 0))
            target = self._registry.target(key)
            rows.append(
                Target(
                    routing_key=key.routing_key,
                    model=key.model,
                    workers=routable.get(key, 0),
                    registered=workers,
                    clusters=0 if target is None else len(target.candidates()),
                    in_flight=load.targets.get(key, 0),
                    requests=requests,
                    errors=errors,
                    refused=refused,
                )
            )
        return rows

    def _flows(self, load: _Load) -> list[Flow]:
        """Pairs that are in use or were since the last look, the busiest first."""
        answered: dict[tuple[str, str, str], float] = {}
        for (routing_key, model, server_id, _), value in self._metrics.requests_total.values():
            if server_id:
                pair = (routing_key, model, server_id)
                answered[pair] = answered.get(pair, 0) + value
        before, before_at = self._answered, self._answered_at
        self._answered, self._answered_at = answered, self._clock()
        elapsed_s = self._answered_at - before_at
        rates: dict[tuple[str, str, str], float] = {}
        if 0 < elapsed_s < _RATE_WITHIN_S:
            rates = {
                pair: (n - before.get(pair, 0)) / elapsed_s for pair, n in answered.items() if n != before.get(pair)
            }
        flows = [
            Flow(
                routing_key=pair[0] or None,
                model=pair[1],
                inference_server_id=pair[2],
                in_flight=load.pairs.get(pair, 0),
                per_second=round(rates.get(pair, 0.0), 2),
            )
            for pair in {**rates, **load.pairs}
        ]
        return sorted(flows, key=lambda one: (-one.in_flight, -one.per_second))


def _rate(value: float) -> float:
    """`value` for JSON, which has neither NaN nor infinity; workers may report both."""
    return round(value, 1) if abs(value) < 1e18 else 0.0


def _add_to_cluster(clusters: dict[tuple[str | None, str], Cluster], worker: Worker) -> None:
    scope = (worker.routing_key, worker.cluster_id)
    cluster = clusters.get(scope)
    if cluster is None:
        cluster = clusters[scope] = Cluster(
            routing_key=worker.routing_key,
            cluster_id=worker.cluster_id,
            workers=0,
            routable=0,
            rtt_ms=None,
            queue=0,
            running=0,
            output_tps=0.0,
            kv_used_tokens=0,
            kv_capacity_tokens=0,
        )
    cluster.workers += 1
    cluster.routable += worker.state == "healthy"
    if worker.rtt_ms is not None:
        cluster.rtt_ms = min(worker.rtt_ms, worker.rtt_ms if cluster.rtt_ms is None else cluster.rtt_ms)
    cluster.queue += worker.queue
    cluster.running += worker.running
    cluster.output_tps += worker.output_tps
    cluster.kv_used_tokens += worker.kv_used_tokens
    cluster.kv_capacity_tokens += worker.kv_capacity_tokens


def _finished(cluster: Cluster) -> Cluster:
    cluster.output_tps = round(cluster.output_tps, 1)
    return cluster
