"""The points of streams, tunnels and bytes: runs of the transport benchmark, of which the client's end is the router's side."""

import asyncio
from collections.abc import Sequence

import uvloop

from benchmarks.growth.panels import Measured
from benchmarks.growth.time_budget import OutOfTimeError, TimeBudget
from benchmarks.transport.client import RunTimeoutError
from benchmarks.transport.measure import Progress, measure_run
from benchmarks.transport.samples import RunSummary
from benchmarks.transport.settings import BUILT, TransportSettings

TUNNELS_RUNNING = 1_000
"""Requests that run at once, over however many tunnels."""

_BODIES_RUNNING = 4
_BODIES_BYTES = 256 << 20
"""Of all bodies of a point, if they are large."""
_LEAST_BODIES = 16
_WARM_UP = 1_000
_SHORTEST_S = 5.0
_STOP_S = 20.0
"""Kept back for the end of a run that is given up."""
_BASE_BYTES = 200_000_000
_STREAM_BYTES = 16_384
"""Of one running request at both ends, without its body."""
_TUNNEL_BYTES = 300_000
"""Of one tunnel at both ends."""
_DESCRIPTORS = 128
_KIB = 1_024


def settings_of(panel: str, x: int, requests: int) -> TransportSettings:
    """The settings of a point, with at least so many requests if their bodies are small. Raises `SettingsError`."""
    if panel == "streams":
        return _running(x, max(requests, 3 * x), 1)
    if panel == "tunnels":
        return _running(max(TUNNELS_RUNNING, x), max(requests, 3 * TUNNELS_RUNNING, 3 * x), x)
    bodies = max(_LEAST_BODIES, min(requests, _BODIES_BYTES // max(x, 1)))
    return TransportSettings(
        server_process=True,
        requests=bodies,
        warmup_requests=max(_BODIES_RUNNING, bodies // 10),
        concurrency=_BODIES_RUNNING,
        request_body_bytes=x,
        request_timeout_ms=60_000,
    )


def _running(running: int, requests: int, tunnels: int) -> TransportSettings:
    return TransportSettings(
        server_process=True,
        requests=requests,
        warmup_requests=max(running, min(_WARM_UP, requests)),
        concurrency=running,
        quic_connections=tunnels,
        request_timeout_ms=60_000,
    )


def needs(settings: TransportSettings) -> tuple[int, int]:
    """The descriptors of one process and the memory in bytes that a point needs."""
    per_request = _STREAM_BYTES + 2 * settings.request_body_bytes
    memory = _BASE_BYTES + settings.concurrency * per_request + settings.quic_connections * _TUNNEL_BYTES
    return _DESCRIPTORS, memory


def measure_tunnels(
    panel: str, sizes: Sequence[int], requests: int, trial: int, budget: TimeBudget, progress: Progress
) -> tuple[list[Measured], str | None]:
    """The points of one trial, and why there are no more of them.

    Raises RuntimeError if a request fails, and TimeoutError, ConnectionError or `ConnectionClosedError` if ends do not connect.
    """
    found: list[Measured] = []
    for x in sizes:
        settings = settings_of(panel, x, requests)

        def told(_: str, done: int, wanted: int, at: str = f"{panel} {x:,}, trial {trial + 1}") -> None:
            progress(at, done, wanted)

        try:
            summary = uvloop.run(_measure(settings, trial, budget, told))
        except OutOfTimeError as error:
            return found, f"from {x:,} on {error}"
        if summary.failure_count:
            raise RuntimeError(f"{panel} {x:,}: {summary.failure_count} of {summary.request_count} requests failed")
        found.append(Measured(panel=panel, x=x, figures=_figures(panel, settings, summary)))
    return found, None


async def _measure(settings: TransportSettings, trial: int, budget: TimeBudget, progress: Progress) -> RunSummary:
    left_s = budget.left_s(_SHORTEST_S + _STOP_S) - _STOP_S
    deadline = asyncio.timeout(left_s)
    try:
        async with deadline:
            run = await measure_run(BUILT[0], trial, settings, progress)
    except (TimeoutError, RunTimeoutError):
        if deadline.expired():
            raise OutOfTimeError from None
        raise
    return run.summary


def _figures(panel: str, settings: TransportSettings, summary: RunSummary) -> dict[str, float]:
    us = (summary.cpu.client_s or 0.0) * 1e6 / summary.request_count
    if panel == "bytes":
        body = settings.request_body_bytes
        rate = summary.throughput_rps * body / (1 << 20)
        return {"us": us, "us_per_kib": us * _KIB / max(body, 1), "mib_per_s": rate}
    p99_us = 0.0 if summary.latency_us is None else summary.latency_us.p99
    return {"us": us, "per_s": summary.throughput_rps, "p99_ms": p99_us / 1_000}
