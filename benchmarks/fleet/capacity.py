"""Whether this machine has the descriptors and the memory for a fleet; checked before anything is started."""

import re
import resource
from dataclasses import dataclass
from pathlib import Path

_SPARE_DESCRIPTORS = 128
_SIMULATOR_DESCRIPTORS = 2
"""Of one simulated worker: the TCP connection of its registration and the UDP socket of its tunnel."""
_ROUTER_DESCRIPTORS = 1
"""Of one worker in a router: the TCP connection; all tunnels share a UDP socket."""
_WORKER_BYTES = 1_000_000
"""Of one worker, in the router and the simulator together: 0.4 MB measured, and a reserve for the start of all at once."""
_BASE_BYTES = 250_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """What processes may use here."""

    descriptors: int
    """Open files of one process."""
    memory_bytes: int | None
    """Available memory; None if it cannot be read."""

    @classmethod
    def read(cls) -> "Capacity":
        """The hard limit of descriptors, to which the processes raise their own, and the available memory."""
        return cls(descriptors=resource.getrlimit(resource.RLIMIT_NOFILE)[1], memory_bytes=_available_bytes())

    def lacks(self, workers: int) -> str | None:
        """Why this many workers do not fit, for people; None if they do."""
        descriptors = workers * max(_SIMULATOR_DESCRIPTORS, _ROUTER_DESCRIPTORS) + _SPARE_DESCRIPTORS
        return self.refuses(f"{workers} workers", descriptors, workers * _WORKER_BYTES + _BASE_BYTES)

    def refuses(self, what: str, descriptors: int, memory_bytes: int) -> str | None:
        """Why what needs these does not fit, for people; None if it does."""
        if descriptors > self.descriptors:
            return f"{what} need {descriptors} descriptors; the limit is {self.descriptors} (ulimit -n)"
        if self.memory_bytes is not None and memory_bytes > self.memory_bytes:
            available = self.memory_bytes >> 20
            return f"{what} need {memory_bytes >> 20} MiB of memory; {available} MiB are available"
        return None


def use_all_descriptors() -> None:
    """Raise this process's soft limit of descriptors, which its children inherit, to the hard one."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _available_bytes(path: Path = Path("/proc/meminfo")) -> int | None:
    try:
        found = re.search(r"^MemAvailable:\s+(\d+) kB", path.read_text(encoding="ascii"), re.MULTILINE)
    except OSError:
        return None
    return None if found is None else int(found[1]) * 1024
