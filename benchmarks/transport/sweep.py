"""CPU cost by number of open streams, number of tunnels and chunk size: three series of runs, as JSON and as one plot.

Client and server run in separate processes, so that each line shows the CPU time of one end. The runs are interleaved and
repeated; each point is the median of its repetitions.
"""

import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec

from benchmarks.transport.measure import Progress, measure_run
from benchmarks.transport.samples import RunSummary
from benchmarks.transport.settings import BUILT, TransportSettings

_IDLE_STREAMS = (0, 250, 1_000, 2_000, 4_000)
_TUNNELS = (1, 2, 4, 8, 16)
_CHUNKS = (64, 256, 1_024, 4_096, 16_384, 65_536)
_STREAMED_BYTES = 65_536
_STREAMED_SHARE = 20
"""Divisor of the number of requests for streamed responses, because a streamed response costs more than a short one."""


class Point(msgspec.Struct, frozen=True):
    """CPU microseconds of each end per request or per chunk (`per`), and wall time figures."""

    x: int
    per: str
    client_us: float
    server_us: float
    throughput_rps: float
    goodput_mib_s: float


class Series(msgspec.Struct, frozen=True):
    """A series of points with one varied parameter."""

    name: str
    points: list[Point]


def _plan(base: TransportSettings) -> list[tuple[str, int, int, TransportSettings]]:
    """For each point: name of the series, x value, chunks per request to divide by, settings of the run."""
    base = replace(base, server_process=True, trials=1)
    streamed = max(1, base.requests // _STREAMED_SHARE)
    rows = [("open streams", x, 1, replace(base, idle_streams=x)) for x in _IDLE_STREAMS]
    rows += [("tunnels", x, 1, replace(base, quic_connections=x)) for x in _TUNNELS]
    rows += [
        (
            "chunk bytes",
            x,
            _STREAMED_BYTES // x,
            replace(
                base,
                requests=streamed,
                warmup_requests=streamed // 10,
                concurrency=min(base.concurrency, 32),
                response_body_bytes=_STREAMED_BYTES,
                response_chunk_bytes=x,
            ),
        )
        for x in _CHUNKS
    ]
    return rows


async def sweep(base: TransportSettings, repeat: int, progress: Progress) -> list[Series]:
    """Run all points `repeat` times. Raises like `measure_run`, and RuntimeError if a request fails."""
    plan = _plan(base)
    found: dict[tuple[str, int], list[RunSummary]] = {}
    for turn in range(repeat):
        for name, x, _chunks, settings in plan:

            def told(_: str, done: int, wanted: int, at: str = f"{name} {x}, {turn + 1} of {repeat}") -> None:
                progress(at, done, wanted)

            run = await measure_run(BUILT[0], turn, settings, told)
            if run.summary.failure_count:
                error = next(sample.error for sample in run.samples if sample.error is not None)
                raise RuntimeError(f"{name} {x}: {run.summary.failure_count} requests failed, the first with: {error}")
            found.setdefault((name, x), []).append(run.summary)
    series: dict[str, list[Point]] = {}
    for name, x, chunks, _settings in plan:
        series.setdefault(name, []).append(_point(x, chunks, found[name, x]))
    return [Series(name, points) for name, points in series.items()]


def _point(x: int, chunks: int, runs: list[RunSummary]) -> Point:
    def median(value: Callable[[RunSummary], float]) -> float:
        return statistics.median(map(value, runs))

    def each(seconds: float | None, run: RunSummary) -> float:
        return (seconds or 0.0) * 1e6 / run.request_count / chunks

    return Point(
        x=x,
        per="request" if chunks == 1 and x < _STREAMED_BYTES else "chunk",
        client_us=median(lambda run: each(run.cpu.client_s, run)),
        server_us=median(lambda run: each(run.cpu.server_s, run)),
        throughput_rps=median(lambda run: run.throughput_rps),
        goodput_mib_s=median(lambda run: run.goodput_mib_s),
    )


def table(series: list[Series]) -> str:
    """A Markdown table of the points."""
    lines = []
    for one in series:
        lines.append(f"\n| {one.name} | client us | server us | per | requests/s | MiB/s |\n|" + " ---: |" * 6 + "\n")
        lines += [
            f"| {p.x} | {p.client_us:.1f} | {p.server_us:.1f} | {p.per} | {p.throughput_rps:.0f} "
            f"| {p.goodput_mib_s:.1f} |\n"
            for p in one.points
        ]
    return "".join(lines)


def draw(series: list[Series], path: Path) -> None:
    """Draw a plot with one panel per series."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "transport"  # equal figures give equal files
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, len(series), figsize=(4.2 * len(series), 3.4))
    for axes, one in zip(panels, series, strict=True):
        xs = [point.x for point in one.points]
        axes.plot(xs, [point.client_us for point in one.points], marker="o", label="client")
        axes.plot(xs, [point.server_us for point in one.points], marker="s", label="server")
        if one.name != "open streams":
            axes.set_xscale("log", base=2)
            axes.set_xticks(xs, [str(x) for x in xs])
        if one.points[0].client_us * 20 < one.points[-1].client_us:
            axes.set_yscale("log")
        else:
            axes.set_ylim(0, 1.15 * max(max(point.client_us, point.server_us) for point in one.points))
        axes.set_xlabel(one.name)
        axes.set_ylabel(f"us CPU a {one.points[0].per}")
        axes.grid(visible=True, alpha=0.3)
        axes.legend()
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    plt.close(figure)
