"""Compares routing policies without a cluster: replays requests through the real registry and selector to simulated engines.

Time is simulated, so thousands of requests take one second. An engine has slots, a prefill rate, a decode rate and a prefix
cache by affinity key. It reports its load once per heartbeat, as workers do, so policies see the last report plus their own
reservations. Not simulated: networks, failures, batching effects inside an engine.

    python -m benchmarks simulator --policy power-of-n --policy pulsar --requests 20000 --plot compare.svg
    python -m benchmarks simulator --manifest requests.jsonl --config lb.json

A manifest has one JSON object per line: at_s, input_tokens, output_tokens, and optionally affinity_key, priority, slo_ms.
"""

import argparse
import heapq
import itertools
import json
import random
import sys
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from router.balancing import BalancingConfig, Chosen, RoutingRequest, Selector, Wait, load_config
from router.balancing.definition import Definition
from router.registry import Identity, ModelStats, ModelUpdate, Registration, Registry, TargetKey

MODEL = "simulated"
KEY = TargetKey(None, MODEL)


class Request(msgspec.Struct):
    """One line of a manifest."""

    at_s: float
    input_tokens: int
    output_tokens: int
    affinity_key: str | None = None
    priority: int = 0
    slo_ms: int | None = None


class Result(NamedTuple):
    """The result of one request."""

    ttft_ms: float | None
    """None if the request was refused."""
    total_ms: float | None
    cluster: str
    cache_hit: bool


class Engine:
    """A simulated engine: FIFO slots, prefill, decode, an LRU cache of prefixes."""

    def __init__(self, number: int, options: argparse.Namespace) -> None:
        # Every third engine is slower, because with equal engines policies differ less.
        slow = 0.5 if number % 3 == 2 else 1.0
        self.name = f"engine-{number}"
        self.slots: int = options.slots
        self.prefill_tps = options.prefill_tps * slow
        self.decode_tps = options.decode_tps * slow
        self.rtt_s = 0.001 + 0.004 * (number % 4)
        self.waiting: deque[tuple[Request, float]] = deque()
        self.running: dict[int, Request] = {}
        self._cache: OrderedDict[str, int] = OrderedDict()
        self._cache_left: int = options.cache_tokens

    def warm_tokens(self, request: Request) -> int:
        """Prompt tokens that need no prefill; the prompt is in the cache afterwards."""
        if request.affinity_key is None:
            return 0
        warm = min(self._cache.pop(request.affinity_key, 0), request.input_tokens)
        self._cache_left += warm
        while self._cache and self._cache_left < request.input_tokens:
            self._cache_left += self._cache.popitem(last=False)[1]
        if request.input_tokens <= self._cache_left:
            self._cache[request.affinity_key] = request.input_tokens
            self._cache_left -= request.input_tokens
        return warm

    def stats(self) -> ModelStats:
        """The statistics that its worker would report now."""
        queued = sum(request.input_tokens for request, _ in self.waiting)
        return ModelStats(
            last_mean_input_tps=self.prefill_tps,
            output_tps=self.decode_tps,
            max_output_tps=self.decode_tps,
            queue_size=len(self.waiting),
            queued_input_size=queued,
            num_running_queries=len(self.running) + len(self.waiting),
            max_engine_concurrency=self.slots,
            kv_cache_capacity_tokens=1_000_000,
            kv_cache_free_tokens=max(0, 1_000_000 - queued),
        )


class Simulation:
    """One policy with one set of engines; `run` returns a result per request."""

    def __init__(self, selector: Selector, method: str | None, options: argparse.Namespace) -> None:
        self._selector = selector
        self._effective = selector.resolve(MODEL, method)
        self._options = options
        self._registry = Registry()
        self._engines: dict[str, tuple[Engine, Registration]] = {}
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._results: list[Result] = []
        self.now = 0.0
        for number in range(options.engines):
            engine = Engine(number, options)
            identity = Identity(engine.name, engine.name, "http://engine", None, reverse=True)
            self._engines[engine.name] = (engine, self._registry.begin(identity, None))  # type: ignore[arg-type]  # no tunnels
            offset = number / options.engines * options.heartbeat_s
            self._at(offset, lambda name=engine.name: self._heartbeat(name))  # type: ignore[misc]
            self._report(engine.name)

    def run(self, requests: list[Request]) -> list[Result]:
        """Replay the requests in simulated time."""
        for request in requests:
            self._at(request.at_s, lambda request=request: self._route(request, request.at_s))  # type: ignore[misc]
        while len(self._results) < len(requests):
            self.now, _, event = heapq.heappop(self._events)
            event()
        return self._results

    def _at(self, when: float, event: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when, next(self._order), event))

    def _heartbeat(self, name: str) -> None:
        self._report(name)
        self._at(self.now + self._options.heartbeat_s, lambda: self._heartbeat(name))

    def _report(self, name: str) -> None:
        engine, registration = self._engines[name]
        update = {MODEL: ModelUpdate(True, engine.stats())}
        self._registry.apply(registration, update, connected=True, rtt_ns=int(engine.rtt_s * 1e9), now=self.now)

    def _route(self, request: Request, arrived_s: float) -> None:
        routing = RoutingRequest(
            routing_key=None,
            model=MODEL,
            input_tokens=request.input_tokens,
            received_at=arrived_s,
            affinity_key=request.affinity_key,
            priority=request.priority,
            request_slo_ms=request.slo_ms,
            max_wait_ms=self._options.max_wait_ms,
        )
        outcome = self._selector.select(
            self._effective,
            routing,
            self._registry.target(KEY),
            advertised=lambda: True,
            failed_backends=set(),
            failed_clusters=set(),
            now=self.now,
        )
        if isinstance(outcome, Wait):
            self._at(self.now + outcome.seconds, lambda: self._route(request, arrived_s))
        elif isinstance(outcome, Chosen):
            backend = outcome.backend
            outcome.cluster.reserve(backend, request.input_tokens, request.priority)
            engine = self._engines[backend.inference_server_id][0]
            self._at(self.now + engine.rtt_s / 2, lambda: self._arrive(engine, request, arrived_s))
        else:
            self._results.append(Result(None, None, "", cache_hit=False))

    def _arrive(self, engine: Engine, request: Request, arrived_s: float) -> None:
        engine.waiting.append((request, arrived_s))
        self._start(engine)

    def _start(self, engine: Engine) -> None:
        while engine.waiting and len(engine.running) < engine.slots:
            request, arrived_s = engine.waiting.popleft()
            number = next(self._order)
            engine.running[number] = request
            warm = engine.warm_tokens(request)
            first = self.now + (request.input_tokens - warm) / engine.prefill_tps + engine.rtt_s / 2
            end = first + request.output_tokens / engine.decode_tps
            result = Result((first - arrived_s) * 1000, (end - arrived_s) * 1000, engine.name, cache_hit=warm > 0)
            self._at(end, lambda engine=engine, number=number, result=result: self._end(engine, number, result))  # type: ignore[misc]

    def _end(self, engine: Engine, number: int, result: Result) -> None:
        del engine.running[number]
        self._results.append(result)
        self._start(engine)


def made_up(options: argparse.Namespace) -> list[Request]:
    """Synthetic requests from a seed: Poisson arrivals, long-tailed prompt lengths, repeated sessions."""
    source = random.Random(options.seed)
    at = 0.0
    requests = []
    for _ in range(options.requests):
        at += source.expovariate(options.rate)
        prompt = min(32_000, int(source.lognormvariate(6.2, 1.0)) + 16)
        session = f"session-{int(options.sessions * source.random() ** 2)}"
        requests.append(Request(at, prompt, source.randint(16, 256), session))
    return requests


def read_manifest(path: Path) -> list[Request]:
    """The requests of a file, in time order. Raises `SystemExit` with a message for an invalid line."""
    requests = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if line.strip():
            try:
                requests.append(msgspec.json.decode(line, type=Request))
            except msgspec.MsgspecError as error:
                sys.exit(f"error: {path}, line {number}: {error}")
    return sorted(requests, key=lambda request: request.at_s)


def summary(results: list[Result]) -> dict[str, Any]:
    """Percentiles, refusals, cache hits, and the imbalance between engines."""
    served = [result for result in results if result.ttft_ms is not None]
    ttft = sorted(result.ttft_ms or 0.0 for result in served)
    total = sorted(result.total_ms or 0.0 for result in served)
    per_engine: dict[str, int] = {}
    for result in served:
        per_engine[result.cluster] = per_engine.get(result.cluster, 0) + 1

    def percentile(values: list[float], share: float) -> float | None:
        return round(values[min(len(values) - 1, int(len(values) * share))], 1) if values else None

    return {
        "requests": len(results),
        "refused": len(results) - len(served),
        "ttft_ms": {name: percentile(ttft, share) for name, share in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99))},
        "total_ms": {name: percentile(total, share) for name, share in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99))},
        "cache_hit_share": round(sum(result.cache_hit for result in served) / max(1, len(served)), 3),
        "busiest_to_mean": round(max(per_engine.values()) * len(per_engine) / len(served), 2) if served else None,
        "engines": dict(sorted(per_engine.items())),
    }


def policies(options: argparse.Namespace) -> Iterator[tuple[str, Selector, str | None]]:
    """Name, selector and method of each compared policy."""
    source = random.Random(options.seed)
    if options.config is not None:
        yield str(options.config.name), Selector(load_config(options.config.read_bytes()), source), None
    for name in options.policy or ([] if options.config else ["power-of-n", "round-robin", "wait-and-widen", "pulsar"]):
        yield name, Selector(BalancingConfig(Definition("random"), {name: Definition(name)}), source), name


def run(args: list[str]) -> None:
    """Print a table, and write JSON and a plot if the options name files."""
    parser = argparse.ArgumentParser(
        prog="benchmarks simulator", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--policy", action="append", help="an algorithm with default settings (repeatable)")
    add("--config", type=Path, help="a load-balancer file to try")
    add("--manifest", type=Path, help="requests to replay; without it they are made up")
    add("--requests", type=int, default=10_000, help="made-up requests")
    add("--rate", type=float, default=60.0, help="made-up requests per second")
    add("--sessions", type=int, default=500, help="sessions the made-up requests belong to")
    add("--engines", type=int, default=8)
    add("--slots", type=int, default=16, help="requests an engine runs at once")
    add("--prefill-tps", type=float, default=20_000.0)
    add("--decode-tps", type=float, default=120.0, help="tokens per second of one request")
    add("--cache-tokens", type=int, default=200_000, help="prefix cache of an engine")
    add("--heartbeat-s", type=float, default=1.0)
    add("--max-wait-ms", type=int, default=None, help="as the header x-max-wait-ms")
    add("--seed", type=int, default=1)
    add("--json", type=Path, help="write all figures to this file")
    add("--plot", type=Path, help="draw the distribution of the time to first token (.svg or .png)")
    options = parser.parse_args(args)
    requests = made_up(options) if options.manifest is None else read_manifest(options.manifest)
    found: dict[str, dict[str, Any]] = {}
    curves: dict[str, list[float]] = {}
    print(f"{'policy':<24}{'TTFT p50':>10}{'p95':>10}{'p99':>10}{'refused':>9}{'cache':>8}{'uneven':>8}{'req/s':>9}")
    for name, selector, method in policies(options):
        started = time.perf_counter()
        results = Simulation(selector, method, options).run(requests)
        took = time.perf_counter() - started
        found[name] = told = summary(results)
        curves[name] = sorted(result.ttft_ms for result in results if result.ttft_ms is not None)
        ttft = told["ttft_ms"]
        print(
            f"{name:<24}{ttft['p50']!s:>10}{ttft['p95']!s:>10}{ttft['p99']!s:>10}{told['refused']:>9}"
            f"{told['cache_hit_share']:>8}{told['busiest_to_mean']!s:>8}{len(results) / took:>9.0f}",
            flush=True,
        )
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    if options.plot is not None:
        draw(curves, options.plot)


def draw(curves: dict[str, list[float]], path: Path) -> None:
    """Plot the share of requests by time to first token, one line per policy."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4.5))
    for name, values in curves.items():
        shares = [(index + 1) / len(values) for index in range(len(values))]
        axes.plot(values, shares, label=name)
    axes.set_xscale("log")
    axes.set_xlabel("time to first token, ms")
    axes.set_ylabel("share of requests")
    axes.grid(visible=True, alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)
