"""The command line of the growth benchmark, and the order of its measurements."""

import argparse
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from benchmarks.fleet.capacity import Capacity, use_all_descriptors
from benchmarks.fleet.system import FleetError
from benchmarks.growth.panels import PANELS, Growth, Measured, medians
from benchmarks.growth.plot import draw
from benchmarks.growth.tables import replace_in, tables
from benchmarks.growth.time_budget import TimeBudget
from benchmarks.growth.tunnels import measure_tunnels, needs, settings_of
from benchmarks.growth.workers import measure_workers
from benchmarks.transport.progress import ProgressLine
from benchmarks.transport.settings import SettingsError
from tunnel_protocol.compilation import description
from tunnel_protocol.errors import ConnectionClosedError

_DESCRIPTION = """How the router's cost grows, in four panels of one plot. All on the loopback, each end in a process of its own:

  streams  CPU of the router's side of one tunnel per request, with 16 to 4,096 requests of 1 KiB running at once
  tunnels  the same with 1,000 requests running at once over 1 to 1,000 tunnels
  bytes    the same with four bodies at a time of 400 bytes to 16 MiB, per request and per KiB
  workers  CPU and memory of a whole router per idle worker; more workers each time, until they do not fit on the
           machine, or the process that simulates them, or the router's core, has nothing left

Each point is measured once in each trial; its figures are medians. Descriptors and memory are checked first. A trial ends
after --limit-s seconds; what could not be measured until then is told. Figures, Markdown tables and the plot are written to
the folder of --out, and the tables are printed:

  benchmarks growth                                  one trial, 5 to 9 minutes
  benchmarks growth --trials 3 --docs docs           and put plot and tables into docs/performance.md
  benchmarks growth --panels bytes --bytes 400,65536 two points
  benchmarks growth --figures .bench-out/growth/growth.json --docs docs
                                                     draw the figures of an earlier run
"""
_SIZES = {
    "streams": (16, 64, 256, 1_024, 4_096),
    "tunnels": (1, 4, 16, 64, 256, 1_000),
    "workers": (10, 100, 300, 1_000, 2_000, 4_000, 10_000),
    "bytes": (400, 4_096, 65_536, 1 << 20, 16 << 20),
}


def run(args: list[str]) -> None:
    """Measure, write, and print the tables. Exit status 2 for invalid options, 1 if points do not fit here or fail."""
    parser = _parser()
    options = parser.parse_args(args)
    if options.figures is None:
        try:
            growth = _measure(options)
        except SettingsError as error:
            parser.error(str(error))
        except (FleetError, RuntimeError, TimeoutError, OSError, ConnectionClosedError) as error:
            raise SystemExit(f"not measured: {error}") from None
    else:
        try:
            growth = msgspec.json.decode(options.figures.read_bytes(), type=Growth)
        except (OSError, msgspec.DecodeError) as error:
            raise SystemExit(f"not drawn: {options.figures}: {error}") from None
    try:
        _write(growth, options.out, options.docs)
    except (OSError, ValueError) as error:
        raise SystemExit(f"not written: {error}") from None


def _write(growth: Growth, folder: Path, docs: Path | None) -> None:
    text = tables(growth)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "growth.json").write_bytes(msgspec.json.format(msgspec.json.encode(growth), indent=1) + b"\n")
    (folder / "growth.md").write_text(text, encoding="utf-8")
    print(text, end="", flush=True)
    draw(growth, folder / "growth.svg")
    if docs is not None:
        replace_in(docs / "performance.md", text)
        draw(growth, docs / "images" / "growth.svg")


def _measure(options: argparse.Namespace) -> Growth:
    """All trials, one after the other. Raises `SettingsError`, and like `measure_tunnels` and `measure_workers`."""
    _check(options, Capacity.read())
    use_all_descriptors()
    progress = ProgressLine()
    conditions = _conditions(options.trials)
    found: list[Measured] = []
    ended: dict[str, str] = {}
    for trial in range(options.trials):
        budget = TimeBudget(options.limit_s)
        # Workers last: their number is open, so they take what time is left.
        for panel in sorted(options.panels, key=lambda name: name == "workers"):
            sizes = getattr(options, panel)
            if panel == "workers":
                points, reason = measure_workers(sizes, options.seconds, trial, budget, progress)
            else:
                points, reason = measure_tunnels(panel, sizes, options.requests, trial, budget, progress)
            progress.end()
            found += points
            if reason is not None:
                ended[panel] = reason
    if not found:
        raise RuntimeError("; ".join(f"{name}: {reason}" for name, reason in ended.items()))
    return Growth(points=medians(found), ended=ended, conditions=conditions)


def _check(options: argparse.Namespace, capacity: Capacity) -> None:
    """Refuse points that do not fit here; of workers only the first, because their number goes to the limit anyway."""
    for panel in options.panels:
        for x in getattr(options, panel):
            if panel == "workers":
                reason = capacity.lacks(x)
            else:
                reason = capacity.refuses(f"{x:,} {panel}", *needs(settings_of(panel, x, options.requests)))
            if reason is not None:
                raise SystemExit(reason)
            if panel == "workers":
                break


def _conditions(trials: int) -> str:
    load = os.getloadavg()[0]
    cpus = len(os.sched_getaffinity(0))
    form = "compiled" if description() == "compiled" else "as written"
    count = "one trial" if trials == 1 else f"medians of {trials} trials"
    return f"{form.capitalize()}, {count}, {cpus} CPUs, load average {load:.1f} before the start."


def _numbers(least: int) -> Callable[[str], list[int]]:
    def read(text: str) -> list[int]:
        try:
            found = sorted({int(part) for part in text.split(",")})
        except ValueError:
            raise argparse.ArgumentTypeError("expected numbers, separated by commas") from None
        if found[0] < least:
            raise argparse.ArgumentTypeError(f"each must be at least {least}")
        return found

    return read


def _panels(text: str) -> list[str]:
    found = list(dict.fromkeys(text.split(",")))
    if unknown := [name for name in found if name not in PANELS]:
        raise argparse.ArgumentTypeError(f"there is no panel '{unknown[0]}'; there are {', '.join(PANELS)}")
    return found


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError("must be greater than 0")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="benchmarks growth", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--panels", type=_panels, default=list(PANELS), metavar="NAME,NAME", help=f"default: {','.join(PANELS)}")
    for name, sizes in _SIZES.items():
        text = f"points of this panel (default: {_joined(sizes)})"
        add(f"--{name}", type=_numbers(1), default=list(sizes), metavar="N,N", help=text)
    add("--trials", type=_count, default=1, help="times each point is measured (default: %(default)s)")
    add("--limit-s", type=_positive, default=570.0, help="the longest time of a trial (default: %(default)s)")
    add(
        "--requests",
        type=_count,
        default=12_000,
        help="requests of a point, more where many run (default: %(default)s)",
    )
    add("--seconds", type=_positive, default=12.0, help="how long idle workers are measured (default: %(default)s)")
    add("--out", type=Path, default=Path(".bench-out/growth"), metavar="FOLDER", help="default: %(default)s")
    add(
        "--docs",
        type=Path,
        metavar="FOLDER",
        help="documentation to put plot (images/) and tables (performance.md) into",
    )
    add("--figures", type=Path, metavar="FILE", help="draw the growth.json of an earlier run, and measure nothing")
    return parser


def _joined(sizes: Sequence[int]) -> str:
    return ",".join(map(str, sizes))
