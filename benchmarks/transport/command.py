"""Sends requests through tunnels on the loopback, without router or worker: throughput and CPU cost of a tunnel encoding.

A client opens all its QUIC connections from one socket to a new server and keeps a fixed number of requests running. Figures
are printed; metadata, summary, report and samples are written to a folder. The exit status is 1 if a request failed, or if
the machine is not suitable in strict mode.

  benchmarks transport                              20,000 requests of 1 KiB, 256 at a time
  benchmarks transport --server-process --trials 5  CPU of both ends, and how noisy the machine is
  benchmarks transport --matrix --scale 0.1         the eight suggested shapes, a tenth of their requests
"""

import argparse
import dataclasses
import sys
from pathlib import Path

import uvloop

from benchmarks.transport.client import RunTimeoutError
from benchmarks.transport.environment import read_environment
from benchmarks.transport.measure import Results, measure
from benchmarks.transport.preflight import preflight
from benchmarks.transport.progress import ProgressLine
from benchmarks.transport.report import matrix_report, write_metadata, write_results
from benchmarks.transport.settings import BUILT, SettingsError, TransportSettings, matrix
from tunnel_protocol.errors import ConnectionClosedError

_HELP = {
    "requests": "measured requests per run",
    "concurrency": "requests under way at a time",
    "quic_connections": "connections; request i goes over connection i modulo this",
    "warmup_requests": "requests before those that are measured, per run",
    "request_body_bytes": "body of a request",
    "response_body_bytes": "body of a response",
    "request_chunk_bytes": "pieces the request body is sent in",
    "response_chunk_bytes": "pieces the response body is sent in",
    "quic_send_fairness": "send streams in turn",
    "http3_send_grease": "send frames of reserved types (HTTP/3 only)",
    "trials": "times everything is measured",
    "warmup_trials": "trials before those, kept apart",
    "cooldown_ms": "pause after every run",
    "randomize_order": "run the transports of a trial in a drawn order (the same on every machine)",
    "noise_threshold_cv": "highest coefficient of variation that counts as reliable",
    "min_effect_size_percent": "smallest difference worth a word",
    "reliability_mode": "smoke, controlled, or strict: refuse to measure on a machine that is not fit",
    "server_process": "run the server in a process of its own",
    "idle_streams": "streams that are open on the first connection and carry nothing",
    "request_timeout_ms": "a request that takes longer has failed",
    "run_timeout_ms": "a run that takes longer is given up",
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="benchmarks transport", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for field in dataclasses.fields(TransportSettings):
        if field.name not in _HELP:
            continue
        flag = "--" + field.name.replace("_", "-")
        text = f"{_HELP[field.name]} (default: {field.default})"
        if isinstance(field.default, bool):
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=field.default, help=text)
        else:
            parser.add_argument(flag, type=type(field.default), help=text)
    parser.add_argument(
        "--transport", action="append", dest="transports", help=f"repeatable; built so far: {', '.join(BUILT)}"
    )
    parser.add_argument("--matrix", action="store_true", help="run the suggested shapes one after the other")
    parser.add_argument("--scale", type=float, default=1.0, help="of the requests in the matrix (default: 1.0)")
    parser.add_argument("--output-dir", type=Path, default=Path(".bench-out/transport"), help="default: %(default)s")
    return parser


def _settings(options: argparse.Namespace) -> TransportSettings:
    given = {
        name: value
        for field in dataclasses.fields(TransportSettings)
        if (value := getattr(options, name := field.name, None)) is not None
    }
    if options.transports:
        given["transports"] = tuple(options.transports)
    return TransportSettings(**given)


def run(args: list[str]) -> None:
    """Measure, print and write. Exit status 2 for invalid options, 1 if the measurement or a request failed."""
    parser = _parser()
    options = parser.parse_args(args)
    try:
        settings = _settings(options)
    except SettingsError as error:
        parser.error(f"--{error.parameter.replace('_', '-')} " + str(error).partition(": ")[2])
    if options.scale <= 0:
        parser.error("--scale must be above 0")
    folder: Path = options.output_dir
    folder.mkdir(parents=True, exist_ok=True)
    facts = read_environment()
    checks = preflight(facts, settings.reliability_mode)
    write_metadata(folder, facts, checks, settings)
    for check in checks:
        if check.status in ("warning", "failure"):
            print(f"{check.status}: {check.name}: {check.detail}", file=sys.stderr)
    if any(check.status == "failure" for check in checks):
        raise SystemExit("not measured: this machine is not fit for strict mode")
    try:
        failed = _measure(options, settings, folder)
    except (TimeoutError, OSError, RuntimeError, RunTimeoutError, ConnectionClosedError) as error:
        raise SystemExit(f"not measured: {error}") from error
    print(f"\nwritten to {folder}")
    if failed:
        raise SystemExit(1)


def _measure(options: argparse.Namespace, settings: TransportSettings, folder: Path) -> bool:
    """Measure, print and write; returns whether a request failed."""
    progress = ProgressLine()
    if not options.matrix:
        results = uvloop.run(measure(settings, progress))
        progress.end()
        print(write_results(folder, results, settings), end="")
        return _failures(results)
    rows = {}
    for name, row in matrix(settings, options.scale).items():
        rows[name] = uvloop.run(measure(row, progress))
        progress.end()
        (folder / name).mkdir(exist_ok=True)
        write_results(folder / name, rows[name], row)
        print(f"{name} done", file=sys.stderr)
    text = matrix_report(rows)
    (folder / "transport-matrix.md").write_text(text, encoding="utf-8")
    print(text, end="")
    return any(_failures(results) for results in rows.values())


def _failures(results: Results) -> bool:
    return any(one.summary.failure_count for one in (*results.runs, *results.warmup_runs))
