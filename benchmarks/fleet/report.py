"""The rows of the fleet benchmark, and what they say about the measurement itself."""

import statistics
from collections.abc import Sequence

import msgspec

SIMULATOR_CORE = 0.85
"""From this share of a core on the simulator is too slow to be as many workers as it says."""
IDLE_CPUS = 0.10
"""With a smaller share of idle CPUs on the whole machine, other processes disturb the measurement."""


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One router with one number of workers, in one round."""

    router: str
    workers: int
    cpu_s_per_s: float
    """CPU of the router in seconds per second."""
    simulator_s_per_s: float
    """CPU of the simulator."""
    idle_cpus: float
    """Share of the machine's CPU time that was idle."""
    resident_bytes: int
    started_s: float
    """From the start of the first worker until all were routable; workers are started at a given rate."""
    restarted_s: float | None = None
    """From the new router's start until all were routable again; None without a restart."""
    lost_handshakes: int | None = None
    """Tunnels that were dialled in vain after the restart."""
    restart_simulator_s_per_s: float = 0.0
    """CPU of the simulator during the restart."""

    def warnings(self) -> list[str]:
        """Why the figures may not be those of the router."""
        found = []
        if self.simulator_s_per_s >= SIMULATOR_CORE:
            found.append(f"the simulator is the limit ({self.simulator_s_per_s:.0%} of a core)")
        if self.restart_simulator_s_per_s >= SIMULATOR_CORE:
            found.append(f"the simulator is the limit of the restart ({self.restart_simulator_s_per_s:.0%} of a core)")
        if self.idle_cpus < IDLE_CPUS:
            found.append(f"the machine is busy ({self.idle_cpus:.0%} idle)")
        return found


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """One router with one number of workers: medians over the rounds."""

    router: str
    workers: int
    cpu_percent: float
    """CPU of the router in percent of a core."""
    cpu_us_per_worker: float | None
    """Microseconds per worker and second, without what the router uses with no worker; None for no worker."""
    kib_per_worker: float | None
    resident_mib: float
    started_s: float
    restarted_s: float | None
    lost_handshakes: int | None
    warnings: list[str]


def figures(rows: Sequence[Row]) -> list[Figures]:
    """Medians by router and number of workers, in order of first occurrence; per worker needs rows with no worker."""
    groups: dict[tuple[str, int], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.router, row.workers), []).append(row)
    return [_figures(group, groups.get((router, 0))) for (router, _), group in groups.items()]


def _figures(group: list[Row], alone: list[Row] | None) -> Figures:
    workers = group[0].workers
    cpu = statistics.median(row.cpu_s_per_s for row in group)
    resident = statistics.median(row.resident_bytes for row in group)
    cpu_each = memory_each = None
    if workers and alone:
        cpu_each = (cpu - statistics.median(row.cpu_s_per_s for row in alone)) * 1e6 / workers
        memory_each = (resident - statistics.median(row.resident_bytes for row in alone)) / 1024 / workers
    restarts = [row.restarted_s for row in group if row.restarted_s is not None]
    lost = [row.lost_handshakes for row in group if row.lost_handshakes is not None]
    return Figures(
        router=group[0].router,
        workers=workers,
        cpu_percent=cpu * 100,
        cpu_us_per_worker=cpu_each,
        kib_per_worker=memory_each,
        resident_mib=resident / (1 << 20),
        started_s=statistics.median(row.started_s for row in group),
        restarted_s=statistics.median(restarts) if restarts else None,
        lost_handshakes=max(lost) if lost else None,
        warnings=list(dict.fromkeys(warning for row in group for warning in row.warnings())),
    )


def table(found: Sequence[Figures]) -> str:
    """One line each, with its ratio to the first router."""
    head = (
        ("us/worker/s", 12),
        ("ratio", 6),
        ("KiB/worker", 11),
        ("MiB", 6),
        ("start s", 8),
        ("restart s", 10),
        ("lost", 5),
    )
    lines = [f"{'router':16} {'workers':>7} {'CPU %':>7} " + " ".join(f"{name:>{width}}" for name, width in head)]
    first = {one.workers: one for one in reversed(found) if one.router == found[0].router}
    for one in found:
        other = first.get(one.workers)
        ratio = None
        if other is not None and other is not one and other.cpu_us_per_worker and one.cpu_us_per_worker is not None:
            ratio = one.cpu_us_per_worker / other.cpu_us_per_worker
        lines.append(
            f"{one.router:16} {one.workers:7} {one.cpu_percent:7.2f} {_text(one.cpu_us_per_worker, 12, 0)} "
            f"{_text(ratio, 6, 2)} {_text(one.kib_per_worker, 11, 0)} {one.resident_mib:6.0f} {one.started_s:8.1f} "
            f"{_text(one.restarted_s, 10, 1)} {_text(one.lost_handshakes, 5, 0)}"
        )
        lines += [f"  ! {warning}" for warning in one.warnings]
    return "\n".join(lines)


def _text(value: float | None, width: int, digits: int) -> str:
    return f"{'-':>{width}}" if value is None else f"{value:{width}.{digits}f}"
