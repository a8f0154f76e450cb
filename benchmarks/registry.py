"""Cost of the registry by number of workers: memory per registration; CPU per heartbeat, snapshot and reservation.

The figures per worker should be the same with 10 and with 10,000 workers. Figures: docs/performance.md, "Registry".
"""

import argparse
import gc
import statistics
import time
import tracemalloc
from collections.abc import Callable

from router.ports.tunnels import TunnelSet
from router.registry import Identity, ModelStats, ModelUpdate, Registration, Registry, TargetKey


class _World:
    """Workers distributed evenly over targets, each in its own cluster or all workers of a target in one."""

    def __init__(self, workers: int, targets: int, *, shared_clusters: bool, tunnels: TunnelSet | None) -> None:
        self.registry = Registry()
        self.models = [f"model-{number % targets}" for number in range(workers)]
        self.now = 0.0
        self.registrations: list[Registration] = []
        for number, model in enumerate(self.models):
            server_id = f"inference-server-{number}"
            cluster_id = f"cluster-of-{model}" if shared_clusters else server_id
            identity = Identity(server_id, cluster_id, f"quic://10.0.0.1:{number}", None, reverse=True)
            self.registrations.append(self.registry.begin(identity, tunnels))  # type: ignore[arg-type]  # not used here
            self.heartbeat(number)
        for target in self.registry.targets():
            target.candidates()

    def heartbeat(self, number: int) -> None:
        self.now += 0.001
        stats = ModelStats(
            last_mean_input_tps=4321.125 + number % 7,
            output_tps=100.0 + self.now % 3,
            queue_size=number % 5,
            queued_input_size=number,
            max_engine_concurrency=256,
            queue_time_estimate_ms_by_priority={0: 3, 4: 10 + number},
        )
        update = {self.models[number]: ModelUpdate(True, stats)}
        self.registry.apply(self.registrations[number], update, connected=True, rtt_ns=1_000_000 + number, now=self.now)

    def heartbeat_and_read(self, number: int) -> None:
        self.heartbeat(number)
        self.read(number)

    def read(self, number: int) -> None:
        target = self.registry.target(TargetKey(None, self.models[number]))
        if target is not None:
            target.candidates()

    def request(self, number: int) -> None:
        """The registry calls of one request: snapshot, backend, reservation."""
        target = self.registry.target(TargetKey(None, self.models[number]))
        if target is None:
            return
        cluster = target.candidates()[0].cluster
        chosen = cluster.pick(())
        if chosen is not None:
            cluster.reserve(chosen, 500, 4)


def run(args: list[str]) -> None:
    """Print one row per size and layout."""
    parser = argparse.ArgumentParser(prog="benchmarks registry", description=__doc__)
    parser.add_argument("--workers", type=int, nargs="+", default=[10, 100, 1_000, 10_000])
    parser.add_argument("--calls", type=int, default=5_000, help="calls timed per figure and repetition")
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args(args)
    print("layout                 workers targets   bytes  heartbeat  +snapshot  unchanged   request   (us a call)")
    for layout, shared, per_target in (
        ("own cluster each", False, 10),
        ("one cluster a target", True, 10),
        ("all in one target", False, 0),
        ("all in one cluster", True, 0),
    ):
        for workers in options.workers:
            targets = max(workers // per_target, 1) if per_target else 1
            _row(layout, workers, targets, shared=shared, calls=options.calls, repeat=options.repeat)


def _row(layout: str, workers: int, targets: int, *, shared: bool, calls: int, repeat: int) -> None:
    gc.collect()
    tracemalloc.start()
    world = _World(workers, targets, shared_clusters=shared, tunnels=None)
    size = tracemalloc.get_traced_memory()[0] / workers
    tracemalloc.stop()
    figures = [
        _us_a_call(step, workers, calls, repeat)
        for step in (world.heartbeat, world.heartbeat_and_read, world.read, world.request)
    ]
    print(f"{layout:22} {workers:7} {targets:7} {size:7.0f} " + " ".join(f"{figure:10.2f}" for figure in figures))


def _us_a_call(step: Callable[[int], None], workers: int, calls: int, repeat: int) -> float:
    numbers = [(number * 7919) % workers for number in range(calls)]
    times = []
    for _ in range(repeat):
        began = time.process_time()
        for number in numbers:
            step(number)
        times.append((time.process_time() - began) / calls * 1e6)
    return statistics.median(times)
