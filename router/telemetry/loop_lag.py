"""How late the event loop runs its timers: the first thing to look at when everything is slow at once."""

import asyncio
from collections.abc import Callable

from router.telemetry.families import Histogram

STALL_S = 2.0
"""A timer this late means that nothing was served meanwhile."""

RECOVERY_S = 5.0
"""How long a stall counts after its end: what has piled up is worked off first."""


class LoopLag:
    """Measures once per interval from `start` to `stop`."""

    def __init__(self, histogram: Histogram, interval_s: float = 1.0) -> None:
        self._histogram = histogram
        self._interval_s = interval_s
        self.on_measured: Callable[[], None] | None = None
        """Called after each measurement."""
        self._timer: asyncio.TimerHandle | None = None
        self._due = float("inf")
        self._stalled_until = float("-inf")

    def start(self) -> None:
        """Begin, or go on, on the running loop."""
        loop = asyncio.get_running_loop()
        self._due = loop.time() + self._interval_s
        self._timer = loop.call_later(self._interval_s, self._measure)

    def stop(self) -> None:
        """Measure no more."""
        if self._timer is not None:
            self._timer.cancel()
        self._due = float("inf")

    def stalled(self) -> bool:
        """Whether the loop stood still for more than `STALL_S` just now, or within the last `RECOVERY_S`."""
        now = asyncio.get_running_loop().time()
        if now - self._due > STALL_S:
            self._stalled_until = now + RECOVERY_S
        return now < self._stalled_until

    def _measure(self) -> None:
        self._histogram.observe(max(0.0, asyncio.get_running_loop().time() - self._due))
        self.stalled()
        self.start()
        if self.on_measured is not None:
            self.on_measured()
