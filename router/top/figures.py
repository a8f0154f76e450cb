"""Figures as short text: numbers, durations, times of day, and a minute of values as a small picture."""

import math
import time
from collections.abc import Sequence
from typing import Final

UNKNOWN: Final = "-"
_BARS: Final = "▁▂▃▄▅▆▇█"
_UNITS: Final = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def count(value: float | None) -> str:
    """A number in at most six characters: `9,999`, then `10.0k`."""
    if value is None or not math.isfinite(value):
        return UNKNOWN
    if abs(value) < 10_000:
        return f"{value:,.0f}" if value == int(value) or abs(value) >= 100 else f"{value:.1f}"
    for size, unit in _UNITS:
        if abs(value) >= size:
            scaled = value / size
            return f"{scaled:.1f}{unit}" if abs(scaled) < 1000 else f"{scaled:.3g}{unit}"
    return f"{value:.0f}"


def milliseconds(value: float | None) -> str:
    """A duration in milliseconds, as `0.42`, `12.3`, `850`, or in seconds or more from 10 s on, as `12.0s`."""
    if value is None or not math.isfinite(value):
        return UNKNOWN
    if value >= 10_000:
        return duration(value / 1000)
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def duration(seconds: float | None) -> str:
    """A duration by its two largest units: `12.3s`, `4m05s`, `3h12m`, `5d03h`."""
    if seconds is None or not math.isfinite(seconds):
        return UNKNOWN
    if seconds < 60:
        return f"{max(0.0, seconds):.1f}s"
    whole = int(seconds)
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02}s"
    if whole < 86_400:
        return f"{whole // 3600}h{whole % 3600 // 60:02}m"
    return f"{whole // 86_400}d{whole % 86_400 // 3600:02}h"


def time_of_day(at: float) -> str:
    """The local time of the Unix time `at`."""
    try:
        return time.strftime("%H:%M:%S", time.localtime(at))
    except (OverflowError, ValueError, OSError):
        return UNKNOWN


def percent(part: float, whole: float) -> str:
    """`part` of `whole`; unknown without a whole."""
    return f"{100 * part / whole:.0f}%" if whole > 0 else UNKNOWN


def bars(values: Sequence[float], width: int) -> str:
    """The last `width` values as one line, the largest at full height; 0 is a blank."""
    shown = values[-width:] if width > 0 else []
    top = max(shown, default=0)
    if top <= 0:
        return " " * len(shown)
    return "".join(" " if value <= 0 else _BARS[min(7, int(value / top * 7.999))] for value in shown)
