"""A cluster as an algorithm sees it: plain attributes without behaviour, immutable during a decision.

Any object with these attributes is a candidate (the registry's snapshots, or a tuple in a test or simulator). Source of the
fields: docs/balancing.md, "What an algorithm sees".
"""

from collections.abc import Mapping
from typing import Protocol


class Candidate(Protocol):
    """Aggregated statistics of one cluster, pending reservations included. Immutable."""

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
        """Sum of the valid prompt throughputs in tokens per second; may be 0."""

    @property
    def output_tps(self) -> float:
        """Sum of the generation throughputs in tokens per second."""

    @property
    def max_output_tps(self) -> float:
        """Best observed generation throughput in tokens per second."""

    @property
    def queue_size(self) -> int:
        """Number of requests without a first token."""

    @property
    def queued_input_size(self) -> int:
        """Prompt tokens that wait for prefill or are in it."""

    @property
    def num_running_queries(self) -> int:
        """Number of requests that the scheduler runs."""

    @property
    def max_engine_concurrency(self) -> int:
        """Concurrency of the scheduler; 0 = not reported."""

    @property
    def has_free_slot(self) -> bool:
        """Whether it reports its concurrency and runs fewer requests, those on their way included: a request does not queue.

        Always False with `--compat 0.11`, where the queue counts all the same.
        """

    @property
    def total_query_input_size(self) -> int:
        """Prompt tokens of all requests."""

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
        """Cumulative queue time estimate in milliseconds by priority, keys ascending; empty = not reported."""
