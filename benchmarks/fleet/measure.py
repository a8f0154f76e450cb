"""Measures one router with one number of simulated workers."""

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.fleet.report import Row
from benchmarks.fleet.system import System
from benchmarks.fleet.usage import Machine, Usage


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetTimes:
    """How long things take, and how fast workers start."""

    seconds: float = 10.0
    """How long is measured."""
    settle_s: float = 3.0
    """Pause before that."""
    interval_ms: int = 1_000
    """Pause between two reports of a worker."""
    start_per_s: float = 100.0
    timeout_s: float = 60.0
    """For all workers to become routable, beyond the time in which they are started."""
    restart: bool = True
    """Whether the router is restarted after the measurement."""


def measure(name: str, command: str, workers: int, times: FleetTimes) -> Row:
    """Start the router and the workers, measure, restart the router if wanted, and end all. Raises `FleetError`."""
    with tempfile.TemporaryDirectory() as folder, System(command, Path(folder)) as system:
        system.start_router()
        started_s = 0.0
        limit_s = times.timeout_s + workers / times.start_per_s
        if workers:
            system.start_simulator(workers, times.interval_ms, times.start_per_s)
            started_s = system.wait_routable(workers, limit_s)
        time.sleep(times.settle_s)
        router, simulator, machine = Usage.of(system.router_pid), _simulator(system, workers), Machine.now()
        began = time.monotonic()
        time.sleep(times.seconds)
        after, simulated, machine_after = Usage.of(system.router_pid), _simulator(system, workers), Machine.now()
        elapsed = time.monotonic() - began
        restarted_s = lost = None
        restart_share = 0.0
        if workers and times.restart:
            lost = -system.lost_handshakes()
            system.stop_router()
            began = time.monotonic()
            system.start_router()
            before = _simulator(system, workers)
            waited_s = system.wait_routable(workers, limit_s)
            restarted_s = time.monotonic() - began
            restart_share = (_simulator(system, workers).cpu_s - before.cpu_s) / max(waited_s, 0.05)
            lost += system.lost_handshakes()
    return Row(
        router=name,
        workers=workers,
        cpu_s_per_s=(after.cpu_s - router.cpu_s) / elapsed,
        simulator_s_per_s=(simulated.cpu_s - simulator.cpu_s) / elapsed,
        idle_cpus=machine_after.idle_since(machine),
        resident_bytes=after.resident_bytes,
        started_s=started_s,
        restarted_s=restarted_s,
        lost_handshakes=lost,
        restart_simulator_s_per_s=restart_share,
    )


def _simulator(system: System, workers: int) -> Usage:
    return Usage.of(system.simulator_pid) if workers else Usage(0.0, 0)
