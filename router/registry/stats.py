"""What a worker reports about one model: its status and the statistics of its engine.

Source: message `ModelStats` of tunnel_protocol/control/stargate.proto; docs/control-plane.md, "Aggregates".
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

"""Counters on the wire are unsigned 64-bit; sums of them saturate at this value."""

NO_ESTIMATES: Final[Mapping[int, int]] = MappingProxyType({})
"""The queue time map of a worker that reports none."""


class ModelStats:
    """The statistics of one report for one model. Immutable once passed to the registry.

    Counters are 0..2^64-1; the map of queue time estimates is kept with its priorities ascending.
    """

    __slots__ = (
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
        "stats_capabilities",
        "stats_observed_at_unix_ms",
        "stats_sources",
        "total_query_input_size",
    )

    def __init__(
        self,
        *,
        last_mean_input_tps: float = 0.0,
        output_tps: float = 0.0,
        queue_size: int = 0,
        queued_input_size: int = 0,
        max_output_tps: float = 0.0,
        kv_cache_capacity_tokens: int = 0,
        kv_cache_used_tokens: int = 0,
        kv_cache_free_tokens: int = 0,
        num_running_queries: int = 0,
        max_engine_concurrency: int = 0,
        total_query_input_size: int = 0,
        queue_time_estimate_ms_by_priority: Mapping[int, int] = NO_ESTIMATES,
        input_processing_queries: int = 0,
        output_generation_queries: int = 0,
        stats_observed_at_unix_ms: int = 0,
        stats_capabilities: tuple[str, ...] = (),
        stats_sources: tuple[str, ...] = (),
    ) -> None:
        self.last_mean_input_tps = last_mean_input_tps
        self.output_tps = output_tps
        self.queue_size = queue_size
        self.queued_input_size = queued_input_size
        self.max_output_tps = max_output_tps
        self.kv_cache_capacity_tokens = kv_cache_capacity_tokens
        self.kv_cache_used_tokens = kv_cache_used_tokens
        self.kv_cache_free_tokens = kv_cache_free_tokens
        self.num_running_queries = num_running_queries
        self.max_engine_concurrency = max_engine_concurrency
        self.total_query_input_size = total_query_input_size
        if queue_time_estimate_ms_by_priority:
            self.queue_time_estimate_ms_by_priority: Mapping[int, int] = dict(
                sorted(queue_time_estimate_ms_by_priority.items())
            )
        else:
            self.queue_time_estimate_ms_by_priority = NO_ESTIMATES
        self.input_processing_queries = input_processing_queries
        self.output_generation_queries = output_generation_queries
        self.stats_observed_at_unix_ms = stats_observed_at_unix_ms
        self.stats_capabilities = stats_capabilities
        self.stats_sources = stats_sources


class ModelUpdate:
    """One model of one registration message: whether the worker reports it as active, and its stats if it sent any."""

    __slots__ = ("active", "stats")

    def __init__(self, active: bool, stats: ModelStats | None) -> None:
        self.active = active
        self.stats = stats
