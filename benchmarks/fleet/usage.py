"""CPU time and memory of a process with its children, and how busy the machine is."""

import os
import re
import time
from pathlib import Path
from typing import NamedTuple

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


class Usage(NamedTuple):
    """Of a process and its children."""

    cpu_s: float
    """User and system time so far."""
    resident_bytes: int

    @classmethod
    def of(cls, pid: int) -> "Usage":
        """Read it now; a process that has ended counts as nothing."""
        pids = [pid]
        cpu_s, resident = 0.0, 0
        for each in pids:
            try:
                folder = Path(f"/proc/{each}")
                for task in (folder / "task").iterdir():
                    pids += [int(child) for child in (task / "children").read_text().split()]
                used_s = _cpu_s(each)
                found = re.search(r"^VmRSS:\s+(\d+)", (folder / "status").read_text(), re.MULTILINE)
            except OSError:
                continue
            cpu_s += used_s
            resident += 0 if found is None else int(found[1]) * 1024
        return cls(cpu_s, resident)


def _cpu_s(pid: int) -> float:
    """The CPU clock of another process: exact, where /proc counts in steps of 10 ms. Raises OSError if it has ended."""
    return time.clock_gettime((~pid << 3) | 2)  # CPUCLOCK_SCHED of a process, as clock_getcpuclockid(3) makes it


class Machine(NamedTuple):
    """Seconds of all CPUs together since the machine's start."""

    idle_s: float
    total_s: float

    @classmethod
    def now(cls) -> "Machine":
        """Read it now."""
        fields = [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
        return cls((fields[3] + fields[4]) * _TICK_S, sum(fields) * _TICK_S)

    def idle_since(self, before: "Machine") -> float:
        """The share of the time since `before` in which CPUs were idle, 0 to 1."""
        return (self.idle_s - before.idle_s) / max(self.total_s - before.total_s, _TICK_S)
