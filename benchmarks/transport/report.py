"""Writes the files of a benchmark: metadata before the runs, then figures, samples and a report."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.transport.environment import Environment
from benchmarks.transport.measure import Results, Run
from benchmarks.transport.preflight import Check
from benchmarks.transport.samples import Aggregate, Quantiles, RunSummary
from benchmarks.transport.settings import TransportSettings

_SCHEMA_VERSION = 3


def write_metadata(folder: Path, facts: Environment, checks: Sequence[Check], settings: TransportSettings) -> None:
    """Write run-metadata.json, before the measurement."""
    document = {
        "schema_version": _SCHEMA_VERSION,
        "benchmark_tier": "transport",
        "reliability_mode": settings.reliability_mode,
        "driver_mode": "server in a second process" if settings.server_process else "both ends in one process",
        **msgspec.to_builtins(facts),
        "preflight_report": msgspec.to_builtins(list(checks)),
        "known_limitations": limitations(settings),
    }
    _write_json(folder / "run-metadata.json", document)


def limitations(settings: TransportSettings) -> list[str]:
    """Restrictions for comparing the figures with those of another implementation."""
    told = [
        "client and server share the loopback of one machine",
        "the receive window of a connection has no bound of its own (the reference's benchmark: 64 MiB)",
        "unsent data is bounded per stream (256 KiB), not per connection (the reference's benchmark: 64 MiB)",
        "HTTP/3 and WebTransport are not built yet",
    ]
    if not settings.server_process:
        told.append("one event loop carries both ends: latencies contain both, CPU seconds are not told apart")
    return told


def write_results(folder: Path, results: Results, settings: TransportSettings) -> str:
    """Write transport-summary.json, the samples and transport-report.md; returns the report."""
    for stale in folder.glob("samples-*.jsonl"):  # of an earlier benchmark with other trials
        stale.unlink()
    summary = {
        "config": msgspec.to_builtins(settings),
        "summaries": [msgspec.to_builtins(run.summary) for run in results.runs],
        "aggregates": msgspec.to_builtins(results.aggregates),
        "comparisons": msgspec.to_builtins(results.comparisons),
        "warmup_run_count": len(results.warmup_runs),
    }
    _write_json(folder / "transport-summary.json", summary)
    for run in results.runs:
        _write_samples(folder, run, several=settings.trials > 1)
    text = report(results, settings)
    (folder / "transport-report.md").write_text(text, encoding="utf-8")
    return text


def _write_samples(folder: Path, run: Run, *, several: bool) -> None:
    name = f"samples-{run.summary.transport}" + (f"-trial-{run.summary.trial + 1}" if several else "")
    lines = msgspec.json.Encoder().encode_lines(sorted(run.samples, key=lambda sample: sample.request_index))
    (folder / f"{name}.jsonl").write_bytes(lines)


def _write_json(path: Path, document: Any) -> None:
    path.write_bytes(msgspec.json.format(msgspec.json.encode(document), indent=1) + b"\n")


def report(results: Results, settings: TransportSettings) -> str:
    """The report in Markdown."""
    parts = [
        "# Transport benchmark\n\n",
        _shape(settings) + "\n",
        _runs([run.summary for run in results.runs]),
    ]
    errors = _errors(results.runs)
    if errors:
        parts.append("\n## Failures\n\n" + errors)
    if settings.trials > 1:
        parts.append("\n## Over the trials\n\n" + _aggregates(results.aggregates))
    for one in results.comparisons:
        delta = "-" if one.throughput_delta_percent is None else f"{one.throughput_delta_percent:+.1f} %"
        word = "a meaningful difference" if one.meaningful_difference else "no meaningful difference"
        parts.append(f"\n{one.transport} beside {one.baseline}: {delta} requests per second, {word}.\n")
    parts.append("\n## To know\n\n" + "".join(f"- {line}\n" for line in limitations(settings)))
    return "".join(parts)


def matrix_report(rows: Mapping[str, Results]) -> str:
    """A Markdown table with one line per matrix row and transport."""
    lines = [
        "# Transport benchmark, matrix\n\n"
        "| row | transport | requests | failed | requests/s | MiB/s | p50 ms | p95 ms | p99 ms "
        "| client us CPU | server us CPU |\n| --- | --- |" + " ---: |" * 9 + "\n"
    ]
    for name, results in rows.items():
        for run in results.runs:
            one = run.summary
            latency = one.latency_us
            lines.append(
                f"| {name} | {one.transport} | {one.request_count} | {one.failure_count} | {one.throughput_rps:.0f} "
                f"| {one.goodput_mib_s:.1f} | {_ms(latency, 'p50')} | {_ms(latency, 'p95')} | {_ms(latency, 'p99')} "
                f"| {_each(one.cpu.client_s, one)} | {_each(one.cpu.server_s, one)} |\n"
            )
    return "".join(lines)


def _shape(settings: TransportSettings) -> str:
    return (
        f"{settings.requests} requests, {settings.concurrency} at a time over {settings.quic_connections} "
        f"connection{'s' if settings.quic_connections > 1 else ''}; {settings.request_body_bytes} bytes up in chunks of "
        f"{settings.request_chunk_bytes}, {settings.response_body_bytes} down in chunks of "
        f"{settings.response_chunk_bytes}; "
        f"{'server in a second process' if settings.server_process else 'both ends in one process'}"
        + (f", beside {settings.idle_streams} idle streams" if settings.idle_streams else "")
        + "."
    )


def _runs(summaries: Sequence[RunSummary]) -> str:
    lines = [
        "\n| transport | trial | ok | failed | requests/s | MiB/s | latency p50 / p95 / p99 ms | head p95 ms "
        "| first body p95 ms | client / server / all us CPU a request |\n| --- |" + " ---: |" * 9 + "\n"
    ]
    for one in summaries:
        latency = one.latency_us
        lines.append(
            f"| {one.transport} | {one.trial + 1} | {one.success_count} | {one.failure_count} "
            f"| {one.throughput_rps:.0f} | {one.goodput_mib_s:.1f} "
            f"| {_ms(latency, 'p50')} / {_ms(latency, 'p95')} / {_ms(latency, 'p99')} "
            f"| {_ms(one.response_headers_us, 'p95')} | {_ms(one.first_body_us, 'p95')} "
            f"| {_each(one.cpu.client_s, one)} / {_each(one.cpu.server_s, one)} / {_each(one.cpu.total_s, one)} |\n"
        )
    return "".join(lines)


def _aggregates(aggregates: Sequence[Aggregate]) -> str:
    lines = [
        "| transport | verdict | requests/s, mean | interval of 95 % | variation |\n| --- |" + " ---: |" * 4 + "\n"
    ]
    for one in aggregates:
        figures = one.throughput_rps
        spread, interval = figures.coefficient_of_variation, figures.mean_ci_95
        lines.append(
            f"| {one.transport} | {one.classification} | {figures.mean:.0f} "
            f"| {'-' if interval is None else f'{interval.lower:.0f} to {interval.upper:.0f}'} "
            f"| {'-' if spread is None else f'{spread:.1%}'} |\n"
        )
    return "".join(lines)


def _errors(runs: Sequence[Run]) -> str:
    counts: dict[str, int] = {}
    for run in runs:
        for sample in run.samples:
            if sample.error is not None:
                counts[sample.error] = counts.get(sample.error, 0) + 1
    ordered = sorted(counts.items(), key=lambda entry: -entry[1])
    return "".join(f"- {count} times: {error}\n" for error, count in ordered[:10])


def _ms(quantiles: Quantiles | None, name: str) -> str:
    return "-" if quantiles is None else f"{getattr(quantiles, name) / 1_000:.2f}"


def _each(seconds: float | None, one: RunSummary) -> str:
    return "-" if seconds is None else f"{seconds * 1e6 / one.request_count:.1f}"
