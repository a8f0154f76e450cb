"""Measures one run of a transport (new server, warm-up, measured requests), and all trials of a benchmark."""

import asyncio
import time
from collections.abc import Callable

import msgspec

from benchmarks.transport.client import connected_client
from benchmarks.transport.samples import (
    Aggregate,
    Comparison,
    Cpu,
    RunSummary,
    Sample,
    aggregate,
    compare,
    summarise,
)
from benchmarks.transport.server import running_server
from benchmarks.transport.settings import TransportSettings

Progress = Callable[[str, int, int], None]
"""Called with the name of the run, its number of ended requests and its number of requests."""


class Run(msgspec.Struct, frozen=True):
    """The figures of a run, and its samples."""

    summary: RunSummary
    samples: list[Sample]


class Results(msgspec.Struct, frozen=True):
    """The results of a benchmark."""

    runs: list[Run]
    warmup_runs: list[Run]
    aggregates: list[Aggregate]
    comparisons: list[Comparison]


async def measure_run(transport: str, trial: int, settings: TransportSettings, progress: Progress) -> Run:
    """Measure one run. Raises `RunTimeoutError`, TimeoutError, ConnectionError or `ConnectionClosedError`."""
    name = f"{transport}, trial {trial + 1}"
    async with running_server(settings) as server, connected_client(server, settings) as client:
        await client.send(settings.warmup_requests, lambda done, all_: progress(f"{name}, warm-up", done, all_))
        server_before = await server.cpu_s()
        ours_before, began = time.process_time(), time.perf_counter()
        samples = await client.send(settings.requests, lambda done, all_: progress(name, done, all_))
        took, ours = time.perf_counter() - began, time.process_time() - ours_before
        server_after = await server.cpu_s()
    theirs = None if server_before is None or server_after is None else server_after - server_before
    cpu = Cpu(ours if settings.server_process else None, theirs, ours + (theirs or 0.0))
    return Run(summarise(transport, trial, samples, took, cpu), samples)


async def measure(settings: TransportSettings, progress: Progress) -> Results:
    """Run all warm-up trials, then all measured trials, with a cool-down after each run. Raises like `measure_run`."""

    async def trials(count: int, *, warmup: bool) -> list[Run]:
        runs = []
        for trial in range(count):
            for transport in settings.order(trial, warmup=warmup):
                runs.append(await measure_run(transport, trial, settings, progress))
                await asyncio.sleep(settings.cooldown_ms / 1_000)
        return runs

    warmup_runs = await trials(settings.warmup_trials, warmup=True)
    runs = await trials(settings.trials, warmup=False)
    aggregates = aggregate([run.summary for run in runs], settings)
    return Results(runs, warmup_runs, aggregates, compare(aggregates, settings))
