"""How many cores this process may use: the CPU limit of its cgroup, and the cores that the scheduler gives it.

Source: the kernel's documentation of control groups, cgroup-v2 ("cpu.max") and cgroup-v1 ("cpu.cfs_quota_us").
"""

import os
from pathlib import Path
from typing import Final

ROOT: Final = Path("/sys/fs/cgroup")
"""Where the control groups are mounted."""

OWN: Final = Path("/proc/self/cgroup")
"""The control groups of this process."""


def cores(root: Path = ROOT, own: Path = OWN) -> int:
    """The whole cores below the limit, at least 1; without a limit all cores that this process may run on."""
    allowed = len(os.sched_getaffinity(0))
    limit = cpu_limit(root, own)
    return allowed if limit is None else max(1, min(allowed, int(limit)))


def cpu_limit(root: Path = ROOT, own: Path = OWN) -> float | None:
    """The lowest CPU limit of the control groups that this process is in, in cores; None if there is none or it is unknown."""
    limits = [limit for group in _groups(root, own) if (limit := _limit(group)) is not None]
    return min(limits, default=None)


def _groups(root: Path, own: Path) -> list[Path]:
    """The directories of the own control group and of those around it, for both versions."""
    found = [root, root / "cpu", root / "cpu,cpuacct"]
    for line in _text(own).splitlines():
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        if controllers and "cpu" not in controllers.split(","):
            continue
        tops = [root / "cpu", root / "cpu,cpuacct"] if controllers else [root]
        parts = [part for part in path.split("/") if part not in ("", "..")]
        found += [top.joinpath(*parts[:depth]) for top in tops for depth in range(1, len(parts) + 1)]
    return found


def _limit(group: Path) -> float | None:
    words = _text(group / "cpu.max").split() or [
        *_text(group / "cpu.cfs_quota_us").split(),
        *_text(group / "cpu.cfs_period_us").split(),
    ]
    try:
        quota, period = (int(word) for word in words)
    except ValueError:  # "max": no limit
        return None
    return quota / period if quota > 0 and period > 0 else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
