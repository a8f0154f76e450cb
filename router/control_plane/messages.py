"""Converts registration messages into the types of the registry."""

from router.control_plane.message_limits import kept_estimates
from router.registry.stats import NO_ESTIMATES, ModelStats, ModelUpdate
from tunnel_protocol.control import stargate_pb2


def model_updates(message: stargate_pb2.InferenceServerRegistration) -> dict[str, ModelUpdate]:
    """Every model of one registration message; any status but ACTIVE, known or not, is inactive."""
    updates = {}
    for model, entry in message.models.items():
        stats = _model_stats(entry.stats) if entry.HasField("stats") else None
        updates[model] = ModelUpdate(entry.status == stargate_pb2.INFERENCE_SERVER_STATUS_ACTIVE, stats)
    return updates


def _model_stats(stats: stargate_pb2.ModelStats) -> ModelStats:
    return ModelStats(
        last_mean_input_tps=stats.last_mean_input_tps,
        output_tps=stats.output_tps,
        queue_size=stats.queue_size,
        queued_input_size=stats.queued_input_size,
        max_output_tps=stats.max_output_tps,
        kv_cache_capacity_tokens=stats.kv_cache_capacity_tokens,
        kv_cache_used_tokens=stats.kv_cache_used_tokens,
        kv_cache_free_tokens=stats.kv_cache_free_tokens,
        num_running_queries=stats.num_running_queries,
        max_engine_concurrency=stats.max_engine_concurrency,
        total_query_input_size=stats.total_query_input_size,
        queue_time_estimate_ms_by_priority=kept_estimates(stats.queue_time_estimate_ms_by_priority) or NO_ESTIMATES,
        input_processing_queries=stats.input_processing_queries,
        output_generation_queries=stats.output_generation_queries,
        stats_observed_at_unix_ms=stats.stats_observed_at_unix_ms,
        stats_capabilities=tuple(stats.stats_capabilities),
        stats_sources=tuple(stats.stats_sources),
    )
