"""The worker's load statistics: requests by state, throughput, queue estimates. No I/O and no clock.

Routers use these figures for their decisions; see docs/worker.md, "Statistics".
"""

import math
from collections import deque
from enum import IntEnum

from tunnel_protocol.control.stargate_pb2 import ModelStats
from tunnel_protocol.unsigned import MAX_U64

FLOOR_S = 0.010
READY_SAMPLES = 5
OUTPUT_WINDOW = 8


class State(IntEnum):
    """The state of a request; never goes back."""

    WAITING = 0
    INPUT = 1
    OUTPUT = 2


class LiveRequest:
    """One running request, from its validated head to its end."""

    def __init__(self, input_tokens: int, priority: int, started_at: float) -> None:
        self.input_tokens = input_tokens
        self.priority = priority
        self.started_at = started_at
        self.state = State.WAITING
        self.first_output_at: float | None = None
        self.output_tokens = 0

    def advance(self, state: State, now: float) -> None:
        """Set the state; a state before the current one is ignored."""
        if state <= self.state:
            return
        self.state = state
        if state is State.OUTPUT and self.first_output_at is None:
            self.first_output_at = now

    def work(self) -> tuple[int, int] | None:
        """(priority, prompt tokens) of this request in the queue; None after its first output."""
        if self.state is State.OUTPUT or not self.input_tokens:
            return None
        return (0 if self.state is State.INPUT else self.priority), self.input_tokens


class ModelLoad:
    """The load of one model."""

    def __init__(
        self, initial_input_tps: float | None = None, *, pinned: bool = False, max_engine_concurrency: int = 0
    ) -> None:
        """`max_engine_concurrency`: requests that the engine processes at a time; 0 = unknown."""
        self._max_engine_concurrency = max_engine_concurrency
        self._live: dict[str, LiveRequest] = {}
        self._pinned = initial_input_tps if pinned else None
        self._input_sum = 0.0 if initial_input_tps is None else initial_input_tps * READY_SAMPLES
        self._input_samples = 0 if initial_input_tps is None else READY_SAMPLES
        self._output_samples: deque[float] = deque(maxlen=OUTPUT_WINDOW)
        self._max_output_tps = 0.0
        self._observed_at_ms = 0
        self._capabilities: dict[str, str] = {}
        self.kv = (0, 0, 0)
        """KV cache tokens: capacity, used, free; None if unknown."""

    @property
    def input_tps(self) -> float:
        """Mean prompt throughput in tokens per second; 0 while unknown."""
        if self._pinned is not None:
            return self._pinned
        return self._input_sum / self._input_samples if self._input_samples >= READY_SAMPLES else 0.0

    def begin(self, request_id: str, request: LiveRequest, wall_ms: int) -> None:
        """Add an accepted request; replaces one of the same id."""
        self._live[request_id] = request
        self._observed_at_ms = wall_ms

    def end(self, request_id: str, request: LiveRequest, now: float, wall_ms: int, *, complete: bool) -> None:
        """Remove a request that has ended; a complete one gives throughput samples."""
        if self._live.get(request_id) is request:
            del self._live[request_id]
        self._observed_at_ms = wall_ms
        if not complete or request.first_output_at is None:
            return
        prompt_s = request.first_output_at - request.started_at
        if prompt_s >= FLOOR_S and request.input_tokens:
            self._input_sum += request.input_tokens / prompt_s
            self._input_samples += 1
        decode_s = now - request.first_output_at
        if decode_s >= FLOOR_S and request.output_tokens:
            rate = request.output_tokens / decode_s
            self._output_samples.append(rate)
            self._max_output_tps = max(self._max_output_tps, rate)

    def capability(self, name: str, source: str) -> None:
        """Record that the statistic `name` is reported, and its source."""
        self._capabilities[name] = source

    def queue_ahead_ms(self, request_id: str, priority: int) -> int | None:
        """Milliseconds of queued work of the same or a more urgent priority; None while throughput is unknown.

        0 if the engine has a free slot: what others have begun does not delay the request. Routers apply the same rule.
        """
        others = len(self._live) - (request_id in self._live)
        if others < self._max_engine_concurrency:
            return 0
        tps = self.input_tps
        if tps <= 0:
            return None
        ahead = 0
        for other_id, other in self._live.items():
            work = other.work()
            if other_id != request_id and work is not None and work[0] <= priority:
                ahead += work[1]
        return _milliseconds(ahead, tps)

    def snapshot(self, now: float) -> ModelStats:
        """The statistics message for routers."""
        live = list(self._live.values())
        queued = [r for r in live if r.state is not State.OUTPUT]
        current = [r.output_tokens / (now - r.first_output_at) for r in live
                   if r.first_output_at is not None and now - r.first_output_at >= FLOOR_S and r.output_tokens]  # fmt: skip
        samples = self._output_samples
        return ModelStats(
            last_mean_input_tps=self.input_tps,
            output_tps=max(
                sum(current) / len(current) if current else 0.0, sum(samples) / len(samples) if samples else 0.0
            ),
            queue_size=len(queued),
            queued_input_size=sum(r.input_tokens for r in queued),
            max_output_tps=self._max_output_tps,
            kv_cache_capacity_tokens=self.kv[0],
            kv_cache_used_tokens=self.kv[1],
            kv_cache_free_tokens=self.kv[2],
            num_running_queries=len(live),
            max_engine_concurrency=self._max_engine_concurrency,
            total_query_input_size=sum(r.input_tokens for r in live),
            queue_time_estimate_ms_by_priority=self._estimates(live),
            input_processing_queries=sum(r.state is State.INPUT for r in live),
            output_generation_queries=sum(r.state is State.OUTPUT for r in live),
            stats_observed_at_unix_ms=self._observed_at_ms,
            stats_capabilities=list(self._capabilities),
            stats_sources=list(self._capabilities.values()),
        )

    def _estimates(self, live: list[LiveRequest]) -> dict[int, int]:
        tps = self.input_tps
        if tps <= 0:
            return {}
        by_priority: dict[int, int] = {}
        for request in live:
            work = request.work()
            if work is not None:
                by_priority[work[0]] = by_priority.get(work[0], 0) + work[1]
        total = 0
        estimates = {}
        for priority in sorted(by_priority):
            total += by_priority[priority]
            estimates[priority] = _milliseconds(total, tps)
        return estimates


def _milliseconds(tokens: int, tps: float) -> int:
    return min(math.ceil(1000 * tokens / tps), MAX_U64)
