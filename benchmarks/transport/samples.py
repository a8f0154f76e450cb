"""The results of runs: a sample for each request, figures of a run, aggregates over trials, comparisons of transports."""

from collections.abc import Sequence

import msgspec

from benchmarks.transport.distribution import Distribution, classify, describe, percentile
from benchmarks.transport.settings import TRANSPORTS, TransportSettings

_MIB = 2**20
_SEEDS = {"raw-quic": 11, "http3": 17, "webtransport": 23}


class Sample(msgspec.Struct, frozen=True):
    """The result of one request. Times are counted from its start, when it became one of the concurrent requests."""

    request_index: int
    connection_index: int
    ok: bool
    """Whether it got status 200 and the whole body without an error."""
    response_status: int | None
    request_bytes: int
    response_bytes: int
    response_headers_us: float | None
    first_body_us: float | None
    completion_us: float
    error: str | None


class Quantiles(msgspec.Struct, frozen=True):
    """Quantiles over the successful requests, in microseconds."""

    min: float
    p50: float
    p90: float
    p95: float
    p99: float
    max: float


class Cpu(msgspec.Struct, frozen=True):
    """CPU seconds (user and system) of the measured requests. With both ends in one process only `total` is known."""

    client_s: float | None
    server_s: float | None
    total_s: float


class RunSummary(msgspec.Struct, frozen=True):
    """The figures of one run of one transport."""

    transport: str
    trial: int
    request_count: int
    success_count: int
    failure_count: int
    measured_duration_ms: float
    throughput_rps: float
    goodput_mib_s: float
    """Bytes of the request and response bodies of successful requests."""
    latency_us: Quantiles | None
    response_headers_us: Quantiles | None
    first_body_us: Quantiles | None
    cpu: Cpu


class Aggregate(msgspec.Struct, frozen=True):
    """The figures of one transport over all trials. A figure that is missing in a trial is None."""

    transport: str
    classification: str
    throughput_rps: Distribution
    goodput_mib_s: Distribution
    latency_p95_us: Distribution | None
    response_headers_p95_us: Distribution | None
    first_body_p95_us: Distribution | None


class Comparison(msgspec.Struct, frozen=True):
    """A transport compared with raw QUIC."""

    transport: str
    baseline: str
    throughput_delta_percent: float | None
    intervals_overlap: bool | None
    meaningful_difference: bool


def summarise(transport: str, trial: int, samples: Sequence[Sample], duration_s: float, cpu: Cpu) -> RunSummary:
    """The figures of one run, which took `duration_s` seconds of wall time."""
    good = [sample for sample in samples if sample.ok]
    moved = sum(sample.request_bytes + sample.response_bytes for sample in good)
    return RunSummary(
        transport=transport,
        trial=trial,
        request_count=len(samples),
        success_count=len(good),
        failure_count=len(samples) - len(good),
        measured_duration_ms=duration_s * 1_000,
        throughput_rps=len(good) / duration_s,
        goodput_mib_s=moved / duration_s / _MIB,
        latency_us=_quantiles([sample.completion_us for sample in good]),
        response_headers_us=_quantiles([sample.response_headers_us for sample in good]),
        first_body_us=_quantiles([sample.first_body_us for sample in good]),
        cpu=cpu,
    )


def aggregate(summaries: Sequence[RunSummary], settings: TransportSettings) -> list[Aggregate]:
    """The aggregate of each transport that ran, in the order of `TRANSPORTS`."""
    found = []
    for transport in TRANSPORTS:
        runs = [summary for summary in summaries if summary.transport == transport]
        if runs:
            found.append(_aggregate(transport, runs, settings))
    return found


def _aggregate(transport: str, runs: Sequence[RunSummary], settings: TransportSettings) -> Aggregate:
    seed = _SEEDS[transport]
    throughput = describe([run.throughput_rps for run in runs], seed)

    def p95(offset: int, quantiles: Sequence[Quantiles | None]) -> Distribution | None:
        values = [one.p95 for one in quantiles if one is not None]
        return describe(values, seed + offset) if len(values) == len(runs) else None

    return Aggregate(
        transport=transport,
        classification=classify(throughput, settings.noise_threshold_cv),
        throughput_rps=throughput,
        goodput_mib_s=describe([run.goodput_mib_s for run in runs], seed + 1),
        latency_p95_us=p95(2, [run.latency_us for run in runs]),
        response_headers_p95_us=p95(3, [run.response_headers_us for run in runs]),
        first_body_p95_us=p95(4, [run.first_body_us for run in runs]),
    )


def compare(aggregates: Sequence[Aggregate], settings: TransportSettings) -> list[Comparison]:
    """Each other transport compared with raw QUIC; empty if raw QUIC did not run."""
    baseline = TRANSPORTS[0]
    base = next((one for one in aggregates if one.transport == baseline), None)
    if base is None:
        return []
    return [_compare(one, base, settings) for one in aggregates if one.transport != baseline]


def _compare(one: Aggregate, base: Aggregate, settings: TransportSettings) -> Comparison:
    mean = base.throughput_rps.mean
    delta = (one.throughput_rps.mean - mean) / mean * 100 if mean else None
    mine, other = one.throughput_rps.mean_ci_95, base.throughput_rps.mean_ci_95
    # There are intervals only for two or more trials.
    overlap = None if mine is None or other is None else mine.lower <= other.upper and other.lower <= mine.upper
    reliable = one.classification == base.classification == "reliable"
    effect = delta is not None and abs(delta) >= settings.min_effect_size_percent
    return Comparison(one.transport, base.transport, delta, overlap, reliable and overlap is False and effect)


def _quantiles(values: Sequence[float | None]) -> Quantiles | None:
    ordered = sorted(value for value in values if value is not None)
    if not ordered:
        return None
    p50, p90, p95, p99 = (percentile(ordered, share) for share in (0.50, 0.90, 0.95, 0.99))
    return Quantiles(ordered[0], p50, p90, p95, p99, ordered[-1])
