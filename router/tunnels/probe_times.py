"""When a worker is probed again: at points of time that all workers of a router share, so that several probes leave in one tick.

A tick of the tunnels costs a wake-up of the process, a look at its descriptors and a pass over its connections, once for all
workers that are probed, answer or are acknowledged in it. The points are close together, so that workers which registered at
different times keep being probed at different times: no tick has the probes of a whole fleet.
"""

from typing import Final

_POINTS: Final = 20
"""Number of points in one interval."""


def pause_s(now: float, interval_s: float) -> float:
    """Seconds from `now` (loop time), when a probe has ended, to the next: the interval, give or take a fortieth of it."""
    grain_s = interval_s / _POINTS
    return round((now + interval_s) / grain_s) * grain_s - now
