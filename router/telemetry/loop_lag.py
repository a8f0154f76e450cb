"""How late the event loop runs its timers: the first thing to look at when everything is slow at once."""

import asyncio

from router.telemetry.families import Histogram


class LoopLag:
    """Measures once per interval from `start` to `stop`."""

    def __init__(self, histogram: Histogram, interval_s: float = 1.0) -> None:
        self._histogram = histogram
        self._interval_s = interval_s
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin, or go on, on the running loop."""
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self._interval_s, self._measure, loop.time() + self._interval_s)

    def stop(self) -> None:
        """Measure no more."""
        if self._timer is not None:
            self._timer.cancel()

    def _measure(self, due: float) -> None:
        self._histogram.observe(max(0.0, asyncio.get_running_loop().time() - due))
        self.start()
