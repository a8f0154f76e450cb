"""What the registry hands out: publications of single workers and snapshots of whole clusters, both immutable.

Source: docs/control-plane.md, "Aggregates". A snapshot is what `router.balancing` calls a candidate.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from router.registry.registration import Registration
from router.registry.stats import ModelStats

if TYPE_CHECKING:
    from router.registry.cluster import RoutedCluster


class Publication:
    """What one registration has published for one target; replaced whole by its next heartbeat."""

    __slots__ = ("received_at", "registration", "rtt_ns", "stats")

    def __init__(self, registration: Registration, stats: ModelStats, rtt_ns: int, received_at: float) -> None:
        self.registration = registration
        self.stats = stats
        self.rtt_ns = rtt_ns
        """Round trip of the health probe through the tunnel, nanoseconds; 0 is a valid one."""
        self.received_at = received_at
        """Monotonic seconds at which the update was applied."""

    @property
    def inference_server_id(self) -> str:
        """The worker's id."""
        return self.registration.identity.inference_server_id

    @property
    def inference_server_url(self) -> str:
        """The worker's URL as registered."""
        return self.registration.identity.url

    @property
    def cluster_id(self) -> str:
        """The worker's effective cluster."""
        return self.registration.identity.cluster_id


class Snapshot:
    """One cluster at one moment: the aggregate of its workers with pending reservations added. Never altered."""

    __slots__ = (
        "active_backend_count",
        "cluster",
        "cluster_id",
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
    total_query_input_size: int
    kv_cache_capacity_tokens: int
    kv_cache_used_tokens: int
    kv_cache_free_tokens: int
    input_processing_queries: int
    output_generation_queries: int
    queue_time_estimate_ms_by_priority: Mapping[int, int]
