"""Measures how late the event loop runs its timers."""

import asyncio
from collections.abc import Callable

from router.telemetry.families import Histogram

STALL_S = 2.0
"""Seconds of delay from which on the event loop counts as stalled."""

RECOVERY_S = 5.0
"""Seconds that a stall counts after its end, while accumulated work is done."""


class LoopLag:
    """Measures every `interval_s` seconds from `start` to `stop`."""

    def __init__(self, histogram: Histogram, interval_s: float = 1.0) -> None:
        self._histogram = histogram
        self._interval_s = interval_s
        self.on_measured: Callable[[], None] | None = None
        """Called after each measurement."""
        self._timer: asyncio.TimerHandle | None = None
        self._due = float("inf")
        self._stalled_until = float("-inf")

    def start(self) -> None:
        """Start or resume on the running event loop."""
        loop = asyncio.get_running_loop()
        self._due = loop.time() + self._interval_s
        self._timer = loop.call_later(self._interval_s, self._measure)

    def stop(self) -> None:
        """Cancel the timer."""
        if self._timer is not None:
            self._timer.cancel()
        self._due = float("inf")

    def stalled(self) -> bool:
        """Whether the event loop is delayed by more than `STALL_S` now, or was within the last `RECOVERY_S`."""
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
