"""The command line of the benchmark of the live page, and the order of its measurements."""

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
import timeit
from pathlib import Path

from benchmarks.fleet.system import FleetError, System
from benchmarks.fleet.usage import Machine, Usage
from benchmarks.live.frames import frames
from benchmarks.live.traffic import Traffic
from benchmarks.live.viewers import watch
from router.operators.request_log import RequestLog
from router.ports.request_ends import RequestEnd

_DESCRIPTION = """What the live page costs the router: its CPU with viewers and without, in turn, with simulated workers and
requests; the time that each request takes for the page; and the frames of the page in a browser (needs `chromium`)."""


def run(args: list[str]) -> None:
    """Print the figures. Exit status 1 if the workers did not become routable."""
    options = _parser().parse_args(args)
    print(f"one report of a request: {_report_us():.2f} us (as written)")
    try:
        with tempfile.TemporaryDirectory() as folder, System(options.router, Path(folder)) as system:
            system.start_router()
            if options.workers:
                system.start_simulator(options.workers, 1_000, 100.0, models=options.targets)
                system.wait_routable(options.workers, 60 + options.workers / 50)
            with Traffic(system.http_address, options.targets, options.requests_per_s):
                time.sleep(options.settle_s)
                _costs(system, options)
                if not options.no_browser:
                    print(frames(system.page_url, options.frames_s).report(), flush=True)
    except FleetError as error:
        raise SystemExit(str(error)) from None


def _costs(system: System, options: argparse.Namespace) -> None:
    """The router's CPU with the viewers and without, in turn."""
    without: list[float] = []
    with_viewers: list[float] = []
    received = 0
    machine = Machine.now()
    for _ in range(options.rounds):
        without.append(_share(system, options.seconds, 0)[0])
        share, received = _share(system, options.seconds, options.viewers)
        with_viewers.append(share)
    without.append(_share(system, options.seconds, 0)[0])
    idle = Machine.now().idle_since(machine)
    pairs = [
        many - (before + after) / 2 for many, before, after in zip(with_viewers, without, without[1:], strict=False)
    ]
    error = statistics.stdev(pairs) / len(pairs) ** 0.5 if len(pairs) > 1 else 0.0
    print(
        f"{options.workers} workers, {options.targets} targets, {options.requests_per_s:g} requests/s; "
        f"{options.rounds} rounds of {options.seconds:g} s; CPUs idle for {idle * 100:.0f} % of the time\n"
        f"  without viewers: {_shown(without)} of a core\n"
        f"  {options.viewers} viewers:     {_shown(with_viewers)} of a core, "
        f"{received / options.viewers / options.seconds / 1024:.1f} KiB per viewer and second\n"
        f"  the viewers:     {statistics.mean(pairs) * 100:.2f} % of a core, standard error {error * 100:.2f}",
        flush=True,
    )


def _share(system: System, seconds: float, viewers: int) -> tuple[float, int]:
    """CPU of the router per second, and bytes that all viewers received."""

    async def measured() -> tuple[float, int]:
        async with watch(system.operators_address, viewers) as bytes_received:
            await asyncio.sleep(1.5)  # the first events, which have everything, are behind
            before, received, began = Usage.of(system.router_pid), bytes_received(), time.monotonic()
            await asyncio.sleep(seconds)
            used = Usage.of(system.router_pid).cpu_s - before.cpu_s
            return used / (time.monotonic() - began), bytes_received() - received

    return asyncio.run(measured())


def _report_us() -> float:
    log = RequestLog("r", time.monotonic, time.time)
    now = time.monotonic()

    def report() -> None:
        log.request_ended(
            RequestEnd(now, 0.2, 0.05, "id", None, "model", "worker", "cluster", 1, 200, "complete", "", "", 12, 0)
        )

    return min(timeit.repeat(report, number=20_000, repeat=5)) / 20_000 * 1e6


def _shown(shares: list[float]) -> str:
    return f"{statistics.median(shares) * 100:.2f} % ({', '.join(f'{share * 100:.2f}' for share in shares)})"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmarks live", description=_DESCRIPTION)
    add = parser.add_argument
    add("--router", default=f"{sys.executable} -P -m router", help="command of the router (default: this one)")
    add("--workers", type=int, default=200)
    add("--targets", type=int, default=50)
    add("--viewers", type=int, default=100)
    add("--requests-per-s", type=float, default=20.0)
    add("--seconds", type=float, default=10.0, help="of each measurement")
    add("--settle-s", type=float, default=3.0)
    add("--rounds", type=int, default=3)
    add("--frames-s", type=float, default=20.0, help="seconds that the page is open in a browser")
    add("--no-browser", action="store_true")
    return parser
