"""What an algorithm can see of one cluster: plain attributes, no behaviour, immutable for the length of a decision.

Any object with these attributes will do (the registry's snapshots, a test's or a simulator's tuple). Source of the fields:
docs/balancing.md, "What an algorithm sees".
"""

from collections.abc import Mapping
from typing import Protocol


class Candidate(Protocol):
    """Aggregated statistics of one cluster, pending reservations applied. Never mutated once handed out."""

    @property
    def cluster_id(self) -> str:
        """Effective cluster id."""

    @property
    def rtt_ns(self) -> int:
        """Mean health round trip of its backends in nanoseconds."""

    @property
    def active_backend_count(self) -> int:
        """Number of routable backends."""

    @property
    def last_mean_input_tps(self) -> float:
        """Sum of the valid prompt throughputs, tokens per second; may be 0."""

    @property
    def output_tps(self) -> float:
        """Sum of generation throughput, tokens per second."""

    @property
    def max_output_tps(self) -> float:
        """Best observed generation throughput."""

    @property
    def queue_size(self) -> int:
        """Requests without a first token."""

    @property
    def queued_input_size(self) -> int:
        """Prompt tokens waiting for or in prefill."""

    @property
    def num_running_queries(self) -> int:
        """Requests holding scheduling capacity."""

    @property
    def max_engine_concurrency(self) -> int:
        """Scheduler concurrency, 0 = not reported."""

    @property
    def total_query_input_size(self) -> int:
        """Prompt tokens over all requests."""

    @property
    def kv_cache_capacity_tokens(self) -> int:
        """KV cache capacity in tokens."""

    @property
    def kv_cache_used_tokens(self) -> int:
        """KV cache tokens in use."""

    @property
    def kv_cache_free_tokens(self) -> int:
        """KV cache tokens free."""

    @property
    def queue_time_estimate_ms_by_priority(self) -> Mapping[int, int]:
        """Cumulative queue time estimate per priority, keys ascending; empty = not reported."""
