"""Makes decisions with a policy before it is activated: a policy that fails here would fail every request.

It uses its own candidates and balancers, so that requests are not affected.
"""

import time
from collections.abc import Collection, Mapping
from random import Random
from typing import Final

from router.balancing.algorithm import MakeAlgorithm
from router.balancing.config import BalancingConfig
from router.balancing.config_error import ConfigError
from router.balancing.definition import Definition
from router.balancing.request import RoutingRequest
from router.balancing.selector import Selector
from router.balancing.settings import CURRENT, BalancingSettings

BUDGET_S: Final = 2.0
"""Seconds that all decisions of one dry run may take together."""


class SampleCandidate:
    """A cluster for a dry run; see `candidate.Candidate` for the attributes."""

    def __init__(self, cluster_id: str, load: int) -> None:
        self.cluster_id = cluster_id
        self.rtt_ns = 1_000_000 * (load + 1)
        self.active_backend_count = 1
        self.last_mean_input_tps = 1_000.0
        self.output_tps = 10.0 * load
        self.max_output_tps = 100.0
        self.queue_size = load
        self.queued_input_size = 100 * load
        self.num_running_queries = load
        self.max_engine_concurrency = 8
        self.has_free_slot = load < 8
        self.total_query_input_size = 1_000 * load
        self.kv_cache_capacity_tokens = 100_000
        self.kv_cache_used_tokens = 1_000 * load
        self.kv_cache_free_tokens = 100_000 - 1_000 * load
        self.queue_time_estimate_ms_by_priority: dict[int, int] = {0: 10 * load} if load else {}


class SampleTarget:
    """A target with three clusters, for a dry run."""

    def __init__(self) -> None:
        self.balancer_state: dict[object, object] = {}
        self._candidates = [SampleCandidate(f"dry-run-{load}", load) for load in range(3)]

    def candidates(self) -> list[SampleCandidate]:
        """The clusters."""
        return self._candidates

    def pick(self, cluster_id: str, excluded_backend_ids: Collection[str]) -> tuple[str, str]:  # noqa: ARG002
        """The cluster id twice: as the cluster and as its only backend."""
        return cluster_id, cluster_id


def dry_run(
    config: BalancingConfig, plugins: Mapping[str, MakeAlgorithm], settings: BalancingSettings = CURRENT
) -> None:
    """Decide with every definition of `config`, which are built then. Raises `ConfigError` (stage `build`)."""
    rng = Random()  # noqa: S311 - nothing is kept secret by it
    try:
        selector = Selector(config, rng, plugins, settings)
        until = time.monotonic() + BUDGET_S
        for _, definition in config.definitions():
            _decide(selector, definition)
            _check_time(until)
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(f"a decision with it fails: {type(error).__name__}: {error}", "build") from error


def _decide(selector: Selector, definition: Definition) -> None:
    target = SampleTarget()
    for affinity_key, tokens in ((None, 0), ("conversation", 1_000)):
        request = RoutingRequest(
            routing_key="tenant",
            model="dry-run",
            input_tokens=tokens,
            received_at=0.0,
            affinity_key=affinity_key,
            request_slo_ms=1_000,
            max_wait_ms=1_000,
        )
        selector.select(
            definition,
            request,
            target,
            advertised=bool,
            failed_backends=set(),
            failed_clusters=set(),
            now=0.1,
        )


def _check_time(until: float) -> None:
    if time.monotonic() > until:
        raise ConfigError(f"decisions with its definitions take more than {BUDGET_S:g} s", "build")
