"""The command line of the comparison, and the order of its measurements."""

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import msgspec
import uvloop

from benchmarks.fleet.usage import Machine, Usage
from benchmarks.openai.cpu_time import cpu_s
from benchmarks.openai.load import Load, Shape, quantile, run_load
from benchmarks.openai.proxies import Proxy, litellm, routers, vllm_router
from llm_request_router import programs
from llm_request_router.testing import Process, System

_DESCRIPTION = """CPU per request and per chunk, latency and memory of the gateway port, of the front for OpenAI clients (open and
with keys), and of LiteLLM's proxy and vLLM's router if their commands are given, all in front of one mock engine, one under load
at a time, in interleaved rounds on the loopback. The others are installed beside the project, never into its environment:

  python3 -m venv /tmp/litellm && /tmp/litellm/bin/pip install 'litellm[proxy]==1.108.7'
  python3 -m venv /tmp/vllm-router && /tmp/vllm-router/bin/pip install vllm-router==0.1.17
  benchmarks openai --litellm /tmp/litellm/bin/litellm --vllm-router /tmp/vllm-router/bin/vllm-router

The shape `single` is one connection, for the time to the first byte without waiting. A load ends after --seconds or --most requests, whichever is first.
"""

_READY_S = 120.0


class Row(NamedTuple):
    """One load of one proxy."""

    proxy: str
    shape: str
    round: int
    cpu_s: float
    requests: int
    failed: int
    chunks: int
    wall_s: float
    first_p50_ms: float
    whole_p50_ms: float
    whole_p99_ms: float
    resident_bytes: int


def run(args: list[str]) -> None:
    """Print a table per shape. Exit status 1 if a proxy did not become ready or answered nothing."""
    options = _parser().parse_args(args)
    shapes = [
        Shape("single", 1, 1),
        Shape("one", options.connections, 1),
        Shape("stream", options.streams, options.tokens),
    ]
    before, began = Machine.now(), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="openai-bench-") as name:
        rows = _measure(Path(name), shapes, options)
    print(f"{time.monotonic() - began:.0f} s, load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} CPUs,", end=" ")
    print(f"idle {Machine.now().idle_since(before):.0%}; medians of {options.rounds} rounds")
    for shape in shapes:
        print(f"\n{shape.name}: {shape.connections} connections, {shape.tokens} token(s) an answer")
        print(table([row for row in rows if row.shape == shape.name]), flush=True)
    if options.json is not None:
        options.json.write_bytes(msgspec.json.format(msgspec.json.encode(rows), indent=1))


def table(rows: list[Row]) -> str:
    """Medians over the rounds, a line for each proxy, in the order of their first rows."""
    head = (
        f"{'proxy':22}{'us CPU/request':>15}{'us CPU/chunk':>13}{'requests/s':>11}"
        f"{'first p50 ms':>13}{'p50 ms':>9}{'p99 ms':>9}{'MiB':>6}{'requests':>9}{'failed':>7}"
    )
    lines = [head]
    for name in dict.fromkeys(row.proxy for row in rows):
        own = [row for row in rows if row.proxy == name]

        def median(values: list[float]) -> float:
            return statistics.median(values)

        lines.append(
            f"{name:22}{median([row.cpu_s / max(row.requests, 1) * 1e6 for row in own]):15.0f}"
            f"{median([row.cpu_s / max(row.chunks, 1) * 1e6 for row in own]):13.1f}"
            f"{median([row.requests / row.wall_s for row in own]):11.0f}"
            f"{median([row.first_p50_ms for row in own]):13.2f}{median([row.whole_p50_ms for row in own]):9.2f}"
            f"{median([row.whole_p99_ms for row in own]):9.2f}"
            f"{median([row.resident_bytes / 2**20 for row in own]):6.0f}"
            f"{sum(row.requests for row in own):9}{sum(row.failed for row in own):7}"
        )
    return "\n".join(lines)


def _measure(folder: Path, shapes: list[Shape], options: argparse.Namespace) -> list[Row]:
    processes: list[Process] = []
    systems: list[System] = []
    try:
        engine_url = _start_engine(folder, processes, options.token_delay_ms)
        systems, proxies = routers(folder, engine_url)
        for start, command in ((litellm, options.litellm), (vllm_router, options.vllm_router)):
            if command is not None:
                process, proxy = start(folder, engine_url, command)
                processes.append(process)
                proxies.append(proxy)
        for proxy in proxies:
            _wait_ready(proxy, processes)
        rows: list[Row] = []
        for shape in shapes:
            for proxy in proxies:
                _load(proxy, shape, 0, 1.0, options.most)
            for number in range(options.rounds):
                rows += [_load(proxy, shape, number + 1, options.seconds, options.most) for proxy in proxies]
        return rows
    finally:
        for system in systems:
            system.close()
        for process in reversed(processes):
            process.stop()


def _start_engine(folder: Path, processes: list[Process], token_delay_ms: float) -> str:
    file = folder / "engine.json"
    command = [*programs.command("stargate_client.mock_engine"), "--port", "0", "--ports-file", str(file)]
    command += ["--model", "my-model", "--num-tokens", "10000", "--token-delay-ms", str(token_delay_ms)]
    engine = Process("engine", command, folder, programs.environment(os.environ))
    processes.append(engine)
    engine.until(lambda: file.exists() or None, "the engine listens")
    return str(json.loads(file.read_text(encoding="utf-8"))["url"])


def _wait_ready(proxy: Proxy, processes: list[Process]) -> None:
    end = time.monotonic() + _READY_S
    while _run(proxy, Shape("ready", 1, 1), 1.0, 1).requests == 0:
        ended = any(process.pid == proxy.pid and process.exit_code is not None for process in processes)
        if ended or time.monotonic() > end:
            logs = "\n".join(f"--- {process.name}\n{process.log()[-1_500:]}" for process in processes)
            raise SystemExit(f"{proxy.name} is not ready\n{logs}")
        time.sleep(0.3)


def _load(proxy: Proxy, shape: Shape, number: int, seconds: float, most: int) -> Row:
    before = cpu_s(proxy.pid)
    found = _run(proxy, shape, seconds, most)
    used = cpu_s(proxy.pid) - before
    if not found.requests:
        raise SystemExit(f"{proxy.name} answered no request: {dict(found.failures)}")
    if found.failures:
        print(f"{proxy.name}, {shape.name}, round {number}: {dict(found.failures)}", file=sys.stderr)
    return Row(
        proxy.name,
        shape.name,
        number,
        used,
        found.requests,
        found.failures.total(),
        found.chunks,
        found.wall_s,
        quantile(found.first_s, 0.5) * 1000,
        quantile(found.whole_s, 0.5) * 1000,
        quantile(found.whole_s, 0.99) * 1000,
        Usage.of(proxy.pid).resident_bytes,
    )


def _run(proxy: Proxy, shape: Shape, seconds: float, most: int) -> Load:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(
            run_load(proxy.address, proxy.headers, shape, seconds, most, asks_for_usage=proxy.asks_for_usage)
        )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="benchmarks openai", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--litellm", metavar="COMMAND", help="LiteLLM's console script; not measured without it")
    parser.add_argument("--vllm-router", metavar="COMMAND", help="the same of vLLM's router")
    parser.add_argument("--connections", type=int, default=16, help="of the shape `one` (default: %(default)s)")
    parser.add_argument("--streams", type=int, default=16, help="of the shape `stream` (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=50, help="of an answer in `stream` (default: %(default)s)")
    parser.add_argument("--token-delay-ms", type=float, default=10, help="of the engine (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--seconds", type=float, default=3, help="of a load (default: %(default)s)")
    parser.add_argument("--most", type=int, default=20_000, help="requests of a load (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="write all rows to this file")
    return parser
