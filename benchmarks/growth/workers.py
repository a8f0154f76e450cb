"""The points of idle workers: runs of the fleet benchmark, more workers each time until something else is the limit."""

import sys
from collections.abc import Sequence
from dataclasses import replace

from benchmarks.fleet.capacity import Capacity
from benchmarks.fleet.measure import FleetTimes, measure
from benchmarks.fleet.report import SIMULATOR_CORE, Row
from benchmarks.fleet.system import FleetError
from benchmarks.growth.panels import Measured
from benchmarks.growth.time_budget import OutOfTimeError, TimeBudget
from benchmarks.transport.measure import Progress

_COMMAND = f"{sys.executable} -P -m router"
_START_S = 10.0
"""For the starts of the two processes, and their ends."""
_ROUTABLE_S = 90.0
_LEAST_ROUTABLE_S = 10.0


def measure_workers(
    numbers: Sequence[int], seconds: float, trial: int, budget: TimeBudget, progress: Progress
) -> tuple[list[Measured], str | None]:
    """The points of one trial, and why there are no more of them. Raises `FleetError` if the router alone cannot be measured."""
    capacity = Capacity.read()
    times = FleetTimes(seconds=seconds, restart=False)
    found: list[Measured] = []
    alone: Row | None = None
    for workers in (0, *numbers):
        if reason := capacity.lacks(workers):
            return found, reason
        progress(f"workers {workers:,}, trial {trial + 1}", len(found), len(numbers))
        try:
            row = measure("router", _COMMAND, workers, _within(budget, workers, times))
        except OutOfTimeError as error:
            return found, f"from {workers:,} on {error}"
        except FleetError as error:
            if alone is None:
                raise
            return found, f"{workers:,} workers: {str(error).splitlines()[0]}"
        if alone is None:
            alone = row
            continue
        point = _point(row, alone)
        found.append(point)
        if point.note is not None:
            return found, f"{workers:,} workers: {point.note}"
    return found, None


def _within(budget: TimeBudget, workers: int, times: FleetTimes) -> FleetTimes:
    """The times, with no more of them for becoming routable than is left of the trial. Raises `OutOfTimeError`."""
    fixed_s = _START_S + workers / times.start_per_s + times.settle_s + times.seconds
    left_s = budget.left_s(fixed_s + _LEAST_ROUTABLE_S) - fixed_s
    return replace(times, timeout_s=min(_ROUTABLE_S, left_s))


def _point(row: Row, alone: Row) -> Measured:
    note = None
    if row.simulator_s_per_s >= SIMULATOR_CORE:
        note = f"the simulator is the limit ({row.simulator_s_per_s:.0%} of a core)"
    elif row.cpu_s_per_s >= SIMULATOR_CORE:
        note = f"the router's core is the limit ({row.cpu_s_per_s:.0%})"
    return Measured(
        panel="workers",
        x=row.workers,
        figures={
            "us": (row.cpu_s_per_s - alone.cpu_s_per_s) * 1e6 / row.workers,
            "core_percent": row.cpu_s_per_s * 100,
            "kib": (row.resident_bytes - alone.resident_bytes) / 1_024 / row.workers,
        },
        note=note,
    )
