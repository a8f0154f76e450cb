"""CPU cost of one routing decision per algorithm and scenario, without building the candidates.

The 23 scenarios, the synthetic candidates and the requests are those of the public comparison benchmark, so that the rows of
two implementations can be compared. The rows of `pulsar` and `round-robin` are deterministic: equal checksums show that two
programs make the same choices. Figures: docs/performance.md, "Decisions".
"""

import argparse
import csv
import random
import sys
import time
from collections import Counter
from typing import NamedTuple

from router.balancing import Choice, RoutingRequest
from router.balancing.catalog import Catalog
from router.balancing.definition import Definition, build

_SEED = "lb-microbench-seed"
_WIDEN: dict[str, object] = {"ttft_bucket_size_ms": 1_000_000, "n": 2, "max_queued": 64, "seed": _SEED}
_IGNORE: dict[str, object] = {"ignore_queue_time": True}
_RTT_ONLY: dict[str, object] = {**_IGNORE, "ignore_input_processing_time": True}
_AFFINITY: dict[str, object] = {"cache_affinity_virtual_nodes": 150, "cache_affinity_backend_selection_count": 2}
_PULSAR: dict[str, object] = {"seed": _SEED, "require_cache_affinity_key": True, "require_input_tokens": True}
METHODOLOGY = "choose-only-v3"
FULL_POOL = -1


class Scenario(NamedTuple):
    """One row: an algorithm with its settings, and the number of excluded clusters."""

    name: str
    algorithm: str
    settings: dict[str, object]
    excluded: int = 0


def scenarios() -> list[Scenario]:
    """All scenarios, in the order of the table."""
    rows = [
        Scenario("power-of-n", "power-of-n", {"sample_count": 2}),
        Scenario("power-of-n-sample1", "power-of-n", {"sample_count": 1}),
        Scenario("power-of-n-sample4", "power-of-n", {"sample_count": 4}),
        Scenario("power-of-n-sample8", "power-of-n", {"sample_count": 8}),
        Scenario("power-of-n-full-pool", "power-of-n", {"sample_count": FULL_POOL}),
        Scenario("power-of-n-one-excluded", "power-of-n", {"sample_count": 2}, 1),
        Scenario("wait-and-widen", "wait-and-widen", _WIDEN),
        Scenario("wait-and-widen-one-excluded", "wait-and-widen", _WIDEN, 1),
    ]
    for name, tuning in (("ignore-queue", _IGNORE), ("rtt-only", _RTT_ONLY), ("affinity", _AFFINITY)):
        for suffix, excluded in (("", 0), ("-one-excluded", 1), ("-multi-excluded", 2)):
            settings = {**_WIDEN, **tuning}
            rows.append(Scenario(f"wait-and-widen-{name}{suffix}", "wait-and-widen", settings, excluded))
    return [
        *rows,
        Scenario("pulsar", "pulsar", _PULSAR),
        Scenario("pulsar-one-excluded", "pulsar", _PULSAR, 1),
        Scenario("random", "random", {}),
        Scenario("random-one-excluded", "random", {}, 1),
        Scenario("round-robin-one-excluded", "round-robin", {}, 1),
        Scenario("round-robin-multi-excluded", "round-robin", {}, 2),
    ]


class BenchCandidate:
    """The snapshot of a cluster with fixed synthetic figures."""

    __slots__ = (
        "active_backend_count",
        "cluster_id",
        "has_free_slot",
        "kv_cache_capacity_tokens",
        "kv_cache_free_tokens",
        "kv_cache_used_tokens",
        "last_mean_input_tps",
        "max_engine_concurrency",
        "max_output_tps",
        "num_running_queries",
        "output_tps",
        "queue_size",
        "queue_time_estimate_ms_by_priority",
        "queued_input_size",
        "rtt_ns",
        "total_query_input_size",
    )

    def __init__(self, i: int) -> None:
        self.cluster_id = f"cluster-{i:04d}"
        self.output_tps = 120.0 + i % 11
        self.last_mean_input_tps = 1200.0 + 31 * (i % 13)
        self.max_output_tps = 500.0
        self.queue_size = i % 7
        self.queued_input_size = 256 * (i % 5)
        self.kv_cache_capacity_tokens = 131_072
        self.kv_cache_used_tokens = 8192 + 64 * (i % 23)
        self.kv_cache_free_tokens = 122_880 - 64 * (i % 23)
        self.num_running_queries = i % 9
        self.max_engine_concurrency = 16
        self.has_free_slot = False
        self.total_query_input_size = 384 * (i % 6)
        self.queue_time_estimate_ms_by_priority = {0: i % 5, 2: 2 + i % 11, 4: 4 + i % 17}
        self.rtt_ns = (500 + 75 * (i % 19)) * 1000
        self.active_backend_count = 1


def measure(scenario: Scenario, options: argparse.Namespace) -> dict[str, object]:
    """Measure one scenario; returns its CSV row."""
    candidates = [BenchCandidate(i) for i in range(options.candidates)]
    settings = dict(scenario.settings)
    if settings.get("sample_count") == FULL_POOL:
        settings["sample_count"] = len(candidates)
    algorithm = build(Definition(scenario.algorithm, settings), random.Random(), Catalog())
    balancer = algorithm.balancer("tenant-a", "bench-model")
    excluded = frozenset(candidate.cluster_id for candidate in candidates[: scenario.excluded])
    keys = [f"cache-prefix-{i:06d}" for i in range(options.cache_keys)]
    received_at = time.monotonic()
    requests = [
        RoutingRequest(
            routing_key="tenant-a",
            model="bench-model",
            input_tokens=512 + 64 * (i % 8),
            received_at=received_at,
            affinity_key=keys[i % len(keys)],
            priority=i % 4,
            request_slo_ms=250,
        )
        for i in range(options.warmup + options.iterations)
    ]
    choose = balancer.choose
    for request in requests[: options.warmup]:
        choose(request, candidates, excluded, 0.0)
    chosen: list[str] = []
    depths = 0
    started = time.perf_counter_ns()
    for request in requests[options.warmup :]:
        choice = choose(request, candidates, excluded, 0.0)
        if isinstance(choice, Choice):
            chosen.append(choice.candidate.cluster_id)
            depths += choice.rank_depth
    total_ns = time.perf_counter_ns() - started
    counts = Counter(chosen)
    top = min(counts.items(), key=lambda item: (-item[1], item[0])) if counts else ("", 0)
    return {
        "methodology": METHODOLOGY,
        "scenario": scenario.name,
        "configured_sample_count": settings.get("sample_count", ""),
        "candidates": len(candidates),
        "iterations": options.iterations,
        "warmup_iterations": options.warmup,
        "concurrency": 1,
        "total_ns": total_ns,
        "ns_per_choose": f"{total_ns / options.iterations:.1f}",
        "choices": len(chosen),
        "avg_rank_depth": f"{depths / max(1, len(chosen)):.3f}",
        "selected_backend_count": len(counts),
        "top_backend": top[0],
        "top_backend_choices": top[1],
        "backend_counts": ";".join(f"{name}:{count}" for name, count in sorted(counts.items())),
        "checksum": checksum(chosen),
    }


def checksum(chosen: list[str]) -> int:
    """A checksum over the bytes of all chosen ids, in order."""
    value = 0
    for name in chosen:
        for byte in name.encode():
            value = (value * 16_777_619 & 0xFFFF_FFFF_FFFF_FFFF) ^ byte
    return value


def run(args: list[str]) -> None:
    """Print CSV, or with --table the microseconds per decision by number of candidates."""
    parser = argparse.ArgumentParser(prog="benchmarks decision", description=__doc__)
    parser.add_argument("--iterations", type=int, default=100_000)
    parser.add_argument("--warmup", type=int, default=10_000)
    parser.add_argument("--candidates", type=int, default=64)
    parser.add_argument("--cache-keys", type=int, default=1024)
    parser.add_argument("--scenario", action="append", default=[], help="name of a row (repeatable; default: all)")
    parser.add_argument(
        "--table", action="store_true", help="microseconds per decision at 64, 256, 1024, 4096 candidates"
    )
    options = parser.parse_args(args)
    rows = [row for row in scenarios() if not options.scenario or row.name in options.scenario]
    if options.table:
        _table(rows, options)
        return
    writer = None
    for row in rows:
        result = measure(row, options)
        if writer is None:
            writer = csv.DictWriter(sys.stdout, list(result))
            writer.writeheader()
        writer.writerow(result)
        sys.stdout.flush()


def _table(rows: list[Scenario], options: argparse.Namespace) -> None:
    sizes = (64, 256, 1024, 4096)
    print(f"{'us per decision':<46}" + "".join(f"{size:>9}" for size in sizes))
    for row in rows:
        cells = []
        for size in sizes:
            if row.settings.get("sample_count") == FULL_POOL and size > 64:
                cells.append("-")
                continue
            keys = min(options.cache_keys, max(16, 65_536 // size))
            iterations = max(300, options.iterations * 64 // size // 10)
            sized = argparse.Namespace(
                **{
                    **vars(options),
                    "candidates": size,
                    "iterations": iterations,
                    "warmup": keys + 20,
                    "cache_keys": keys,
                }
            )
            cells.append(f"{float(str(measure(row, sized)['ns_per_choose'])) / 1000:.1f}")
        print(f"{row.name:<46}" + "".join(f"{cell:>9}" for cell in cells), flush=True)
