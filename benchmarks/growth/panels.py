"""The four panels of the plot, their points, and the medians of repeated trials."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import msgspec


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """What is varied, and which figures each point has. The first figure is the cost that is drawn with its spread."""

    name: str
    title: str
    x_label: str
    y_label: str
    figures: Mapping[str, tuple[str, int]]
    """The heading and the number of decimals of each figure, by its name."""
    drawn: tuple[str, ...]
    """The figures that are drawn."""


PANELS: Mapping[str, Panel] = {
    panel.name: panel
    for panel in (
        Panel(
            name="streams",
            title="Streams",
            x_label="requests running at once on one tunnel",
            y_label="us CPU a request",
            figures={"us": ("us a request", 1), "per_s": ("requests/s", 0), "p99_ms": ("p99 ms", 1)},
            drawn=("us",),
        ),
        Panel(
            name="tunnels",
            title="Tunnels",
            x_label="tunnels that share the same running requests",
            y_label="us CPU a request",
            figures={"us": ("us a request", 1), "per_s": ("requests/s", 0), "p99_ms": ("p99 ms", 1)},
            drawn=("us",),
        ),
        Panel(
            name="workers",
            title="Workers",
            x_label="idle workers",
            y_label="us CPU a worker and second",
            figures={
                "us": ("us a worker and second", 0),
                "core_percent": ("% of a core", 1),
                "kib": ("KiB a worker", 0),
            },
            drawn=("us",),
        ),
        Panel(
            name="bytes",
            title="Bytes",
            x_label="bytes of a request body",
            y_label="us CPU",
            figures={"us": ("us a request", 1), "us_per_kib": ("us a KiB", 2), "mib_per_s": ("MiB/s", 1)},
            drawn=("us", "us_per_kib"),
        ),
    )
}


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """One point of one trial."""

    panel: str
    x: int
    figures: dict[str, float]
    note: str | None = None
    """Why the figures may not be those of the router."""


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """Medians of the trials of one point."""

    x: int
    trials: int
    figures: dict[str, float]
    lowest: float
    """Of the first figure, over the trials."""
    highest: float
    notes: list[str]


class Growth(msgspec.Struct, frozen=True, kw_only=True):
    """The result of a run; the figures of a panel that was not measured are absent."""

    points: dict[str, list[Point]]
    ended: dict[str, str]
    """By panel: why it has no more points."""
    conditions: str
    """Of the measurement, for people."""


def medians(measured: Iterable[Measured]) -> dict[str, list[Point]]:
    """The points of each panel, in the order of `PANELS` and of their x."""
    found: dict[tuple[str, int], list[Measured]] = {}
    for one in measured:
        found.setdefault((one.panel, one.x), []).append(one)
    panels: dict[str, list[Point]] = {}
    for name, panel in PANELS.items():
        for x in sorted(x for panel_name, x in found if panel_name == name):
            panels.setdefault(name, []).append(_point(panel, x, found[name, x]))
    return panels


def _point(panel: Panel, x: int, trials: Sequence[Measured]) -> Point:
    first = [one.figures[next(iter(panel.figures))] for one in trials]
    return Point(
        x=x,
        trials=len(trials),
        figures={name: statistics.median(one.figures[name] for one in trials) for name in panel.figures},
        lowest=min(first),
        highest=max(first),
        notes=list(dict.fromkeys(one.note for one in trials if one.note is not None)),
    )
