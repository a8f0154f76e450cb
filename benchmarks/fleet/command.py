"""The command line of the fleet benchmark, and the order of its measurements."""

import argparse
import sys
from pathlib import Path

import msgspec

from benchmarks.fleet.capacity import Capacity, use_all_descriptors
from benchmarks.fleet.measure import FleetTimes, measure
from benchmarks.fleet.report import Row, figures, table
from benchmarks.fleet.system import FleetError

_DESCRIPTION = """What registered workers cost a router without requests: CPU per worker and second, memory per worker, and the
time until all are routable again after a restart of the router.

The workers are simulated by one other process, each with a gRPC connection, a UDP socket and a QUIC tunnel of its own. Several
--router are measured in turn, each in every round, and compared with the first one:

  benchmarks fleet --workers 10,100,1000
  benchmarks fleet --router "reference=stargate" --router "this=python -m router" --workers 100 --rounds 5
"""


def run(args: list[str]) -> None:
    """Print the table. Exit status 1 if workers do not fit on this machine, or did not become routable."""
    options = _parser().parse_args(args)
    routers = [_router(text) for text in options.router] or [("router", f"{sys.executable} -P -m router")]
    capacity = Capacity.read()
    for workers in options.workers:
        if reason := capacity.lacks(workers):
            raise SystemExit(reason)
    use_all_descriptors()
    times = FleetTimes(
        seconds=options.seconds,
        settle_s=options.settle_s,
        interval_ms=options.interval_ms,
        start_per_s=options.start_per_s,
        timeout_s=options.timeout_s,
        restart=options.restart,
    )
    rows: list[Row] = []
    try:
        for _ in range(options.rounds):
            for workers in [0, *(number for number in options.workers if number)]:
                for name, command in routers:
                    rows.append(measure(name, command, workers, times))
    except FleetError as error:
        raise SystemExit(str(error)) from None
    found = figures(rows)
    print(table(found), flush=True)
    if options.json is not None:
        options.json.write_bytes(msgspec.json.format(msgspec.json.encode(found), indent=1))


def _router(text: str) -> tuple[str, str]:
    name, _, command = text.partition("=")
    return name, command


def _named(text: str) -> str:
    name, _, command = text.partition("=")
    if not name.strip() or not command.strip():
        raise argparse.ArgumentTypeError("expected NAME=COMMAND")
    return text


def _numbers(text: str) -> list[int]:
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError("expected numbers, separated by commas") from None
    if any(number < 0 for number in found):
        raise argparse.ArgumentTypeError("a number of workers is 0 or more")
    return list(dict.fromkeys(found))


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError("must be greater than 0")
    return value


def _interval(text: str) -> int:
    value = int(text)
    if value <= 0:
        raise argparse.ArgumentTypeError("must be greater than 0")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="benchmarks fleet", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--workers", type=_numbers, default=[10, 100], metavar="N,N", help="numbers of workers (default: 10,100)")
    add("--router", type=_named, action="append", default=[], metavar="NAME=COMMAND", help="default: this one")
    add("--rounds", type=_interval, default=1, help="rounds; the figures are medians (default: %(default)s)")
    add("--seconds", type=_positive, default=10.0, help="how long is measured (default: %(default)s)")
    add("--settle-s", type=_positive, default=3.0, help="pause before that (default: %(default)s)")
    add("--interval-ms", type=_interval, default=1_000, help="pause between two reports (default: %(default)s)")
    add("--start-per-s", type=_positive, default=100.0, help="workers started in a second (default: %(default)s)")
    add("--timeout-s", type=_positive, default=60.0, help="for all to become routable (default: %(default)s)")
    add("--no-restart", dest="restart", action="store_false", help="do not restart the router")
    add("--json", type=Path, help="also write the figures to this file")
    return parser
