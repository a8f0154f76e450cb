"""Facts about the machine and the checkout, written with all figures. A fact that cannot be read is None, not an error."""

import math
import os
import platform
import socket
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import msgspec

_GIT_S = 5.0
_CPUS = Path("/sys/devices/system/cpu")


class Environment(msgspec.Struct, frozen=True):
    """The machine, interpreter and checkout of a measurement."""

    command_line: list[str]
    started_at_unix_seconds: int
    executable: str
    working_folder: str
    source_revision: str | None
    source_branch: str | None
    source_dirty: bool | None
    runtime_version: str
    runtime_profile: str
    """`release` or `debug` (of the interpreter), and whether assertions are on."""
    host_name: str
    kernel: str
    cpu_model: str | None
    logical_cpus: int | None
    usable_cpus: int
    """Usable CPUs: the smaller of the scheduler's and the control group's number."""
    cpu_governor: str | None
    cpu_turbo: bool | None
    address_space_randomisation: int | None
    nmi_watchdog: int | None
    perf_event_paranoid: int | None
    load_average: list[float] | None
    cgroup_cpu_quota: str | None
    cpu_affinity: list[int] | None


def read_environment() -> Environment:
    """Read the current facts."""
    affinity = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    quota = _text(Path("/sys/fs/cgroup/cpu.max"))
    status = _git("status", "--porcelain")
    return Environment(
        command_line=list(sys.orig_argv),
        started_at_unix_seconds=int(time.time()),
        executable=sys.executable,
        working_folder=str(Path.cwd()),
        source_revision=_git("rev-parse", "HEAD"),
        source_branch=_git("rev-parse", "--abbrev-ref", "HEAD"),
        source_dirty=None if status is None else bool(status),
        runtime_version=f"{platform.python_implementation()} {platform.python_version()}",
        runtime_profile=("debug" if is_debug_build() else "release") + f", assertions {'on' if __debug__ else 'off'}",
        host_name=socket.gethostname(),
        kernel=f"{platform.system()} {platform.release()}",
        cpu_model=_cpu_model(),
        logical_cpus=os.cpu_count(),
        usable_cpus=_usable(len(affinity) if affinity else os.cpu_count() or 1, quota),
        cpu_governor=_text(_CPUS / "cpu0/cpufreq/scaling_governor"),
        cpu_turbo=_turbo(),
        address_space_randomisation=_number(Path("/proc/sys/kernel/randomize_va_space")),
        nmi_watchdog=_number(Path("/proc/sys/kernel/nmi_watchdog")),
        perf_event_paranoid=_number(Path("/proc/sys/kernel/perf_event_paranoid")),
        load_average=_load(),
        cgroup_cpu_quota=quota,
        cpu_affinity=affinity,
    )


def is_debug_build() -> bool:
    """Whether this interpreter is a debug build."""
    return bool(sysconfig.get_config_var("Py_DEBUG")) or hasattr(sys, "gettotalrefcount")


def _usable(cpus: int, quota: str | None) -> int:
    given, _, period = (quota or "max").partition(" ")
    if not given.isdigit() or not period.isdigit() or int(period) == 0:
        return cpus
    return max(1, min(cpus, math.ceil(int(given) / int(period))))


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8").strip() or None
    except (OSError, UnicodeDecodeError):
        return None


def _number(path: Path) -> int | None:
    text = _text(path)
    try:
        return None if text is None else int(text)
    except ValueError:
        return None


def _turbo() -> bool | None:
    off = _number(_CPUS / "intel_pstate/no_turbo")
    boost = _number(_CPUS / "cpufreq/boost")
    if off is not None:
        return off == 0
    return None if boost is None else boost == 1


def _load() -> list[float] | None:
    try:
        return list(os.getloadavg())
    except OSError:
        return None


def _cpu_model() -> str | None:
    for line in (_text(Path("/proc/cpuinfo")) or "").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return None


def _git(*arguments: str) -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, check=False, timeout=_GIT_S, text=True)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
