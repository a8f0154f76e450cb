"""Candidates, clusters and targets for tests of the routing policy: plain values with the attributes an algorithm sees."""

import math
import random
from collections.abc import Callable, Collection, Sequence
from fractions import Fraction
from typing import Any

from router.balancing import RoutingRequest
from router.balancing.catalog import Catalog
from router.balancing.config import BalancingConfig
from router.balancing.definition import Definition, build, parse_definition
from router.balancing.json_document import JsonObject
from router.balancing.selector import Selector
from router.balancing.settings import CURRENT, BalancingSettings

FIELDS = {
    "active_backend_count": 1,
    "last_mean_input_tps": 0.0,
    "output_tps": 0.0,
    "max_output_tps": 0.0,
    "queue_size": 0,
    "queued_input_size": 0,
    "num_running_queries": 0,
    "max_engine_concurrency": 0,
    "has_free_slot": False,
    "total_query_input_size": 0,
    "kv_cache_capacity_tokens": 0,
    "kv_cache_used_tokens": 0,
    "kv_cache_free_tokens": 0,
}


class FakeCluster:
    """Hands out backend names by round-robin."""

    def __init__(self, backends: Sequence[str] = ("backend",)) -> None:
        self.backends = list(backends)
        self.picks = 0

    def pick(self, excluded: Collection[str]) -> str | None:
        left = [name for name in self.backends if name not in excluded]
        if not left:
            return None
        self.picks += 1
        return left[(self.picks - 1) % len(left)]


class FakeCandidate:
    def __init__(
        self, cluster_id: str, *, rtt_ns: int = 5_000_000, cluster: FakeCluster | None = None, **stats: Any
    ) -> None:
        self.cluster_id = cluster_id
        self.rtt_ns = rtt_ns
        self.cluster = cluster or FakeCluster()
        estimates = stats.pop("queue_time_estimate_ms_by_priority", {})
        self.queue_time_estimate_ms_by_priority = {
            int(k): v for k, v in sorted(estimates.items(), key=lambda i: int(i[0]))
        }
        for name, default in FIELDS.items():
            setattr(self, name, number(stats.pop(name, default)))
        assert not stats, stats

    def __repr__(self) -> str:
        return self.cluster_id


class FakeTarget:
    def __init__(self, *candidates: FakeCandidate) -> None:
        self.list = list(candidates)
        self.balancer_state: dict[str, object] = {}

    def candidates(self) -> list[FakeCandidate]:
        return self.list

    def pick(self, cluster_id: str, excluded_backend_ids: Collection[str]) -> Any:
        (cluster,) = (one.cluster for one in self.list if one.cluster_id == cluster_id)
        backend = cluster.pick(excluded_backend_ids)
        return None if backend is None else (cluster, backend)


def number(value: Any) -> Any:
    return float(value) if isinstance(value, str) else value


def candidate(vector: Any) -> FakeCandidate:
    return FakeCandidate(vector["cluster_id"], rtt_ns=vector.get("rtt_ns", 5_000_000), **vector.get("stats", {}))


def request(vector: Any = None, **given: Any) -> RoutingRequest:
    vector = {**(vector or {}), **given}
    return RoutingRequest(
        routing_key=vector.get("routing_key"),
        model=vector.get("model_id", "model-a"),
        input_tokens=vector.get("input_tokens", 0),
        received_at=0.0,
        affinity_key=vector.get("cache_affinity_key"),
        priority=vector.get("priority", 0),
        request_slo_ms=vector.get("request_slo_ms"),
        max_wait_ms=vector.get("max_wait_ms"),
    )


EARLIER = BalancingSettings(affinity_waits=False, expressions=False)
"""The algorithms as of the reference's 0.11."""


def balancer(
    config: Any,
    seed: int = 0,
    routing_key: str = "rk-1",
    model: str = "model-a",
    settings: BalancingSettings = CURRENT,
) -> Any:
    catalog = Catalog(settings=settings)
    algorithm = build(parse_definition(JsonObject(config.items()), catalog), random.Random(seed), catalog)
    return algorithm.balancer(routing_key, model)


def selector(config: Any = None, seed: int = 0, settings: BalancingSettings = CURRENT) -> Selector:
    return Selector(config or BalancingConfig(), random.Random(seed), settings=settings)


def tuned(name: str, **settings: Any) -> Definition:
    return Definition(name, settings)


def shares(choose: Callable[[], object], rounds: int) -> dict[object, float]:
    """How often each choice came up."""
    counts: dict[object, int] = {}
    for _ in range(rounds):
        found = choose()
        counts[found] = counts.get(found, 0) + 1
    return {key: count / rounds for key, count in counts.items()}


def close(share: float, expected: Any, rounds: int) -> bool:
    """Within four standard deviations of a fair coin of this probability."""
    p = float(Fraction(expected))
    return abs(share - p) <= 4 * math.sqrt(p * (1 - p) / rounds) + 1e-12
