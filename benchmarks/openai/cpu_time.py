"""CPU time of a process and its children to the nanosecond: /proc/PID/stat has it in steps of 10 ms, too coarse for a load of a second."""

from pathlib import Path


def cpu_s(pid: int) -> float:
    """Seconds that the threads of a process and of its children have run; those that have ended are not counted."""
    pids, found = [pid], 0
    for each in pids:
        try:
            for task in Path(f"/proc/{each}/task").iterdir():
                found += int((task / "schedstat").read_text().split()[0])
                pids += [int(child) for child in (task / "children").read_text().split()]
        except OSError:
            continue  # it has ended
    return found / 1e9
