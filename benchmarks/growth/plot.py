"""Draws the panels as one SVG that follows the reader's choice of light or dark mode."""

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.growth.panels import PANELS, Growth, Panel, Point

_INK, _GRID, _PAPER, _SERIES = "#1f2328", "#d1d9e0", "#ffffff", ("#0969da", "#bc4c00")
_DARK = {
    _INK: "#f0f6fc",
    _GRID: "#3d444d",
    _PAPER: "#0d1117",
    _SERIES[0]: "#4493f8",
    _SERIES[1]: "#f0883e",
}
_DECADE = 10.0
"""The least ratio of the highest to the lowest value of an axis: a spread of a few percent shall look like one."""


_LOOK: Any = {  # matplotlib types each key by itself
    "svg.hashsalt": "growth",
    "font.size": 9,
    "text.color": _INK,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "axes.facecolor": _PAPER,
    "figure.facecolor": _PAPER,
    "grid.color": _GRID,
    "xtick.color": _INK,
    "ytick.color": _INK,
}


def draw(growth: Growth, path: Path) -> None:
    """Write the plot of all panels that have points; equal figures give equal files. Raises OSError, and ValueError for none."""
    path.write_text(follow_colour_scheme(_svg(growth)), encoding="utf-8")


def follow_colour_scheme(svg: str) -> str:
    """The drawing with other colours where the reader's colour scheme is dark. What does not know media queries shows the light one."""
    rules = "".join(
        f'[style*="{name}: {light}"]{{{name}:{dark} !important}}'
        for light, dark in _DARK.items()
        for name in ("fill", "stroke")
    )
    style = f"<style>@media (prefers-color-scheme: dark){{{rules}}}</style>"
    return re.sub(r"(<svg\b[^>]*>)", lambda found: found[1] + "\n" + style, svg, count=1)


def _svg(growth: Growth) -> str:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    names = [name for name in PANELS if growth.points.get(name)]
    if not names:
        raise ValueError("there are no points to draw")
    rows, columns = (len(names) + 1) // 2, min(len(names), 2)
    with mpl.rc_context():
        mpl.rcParams.update(_LOOK)
        figure, grid = plt.subplots(rows, columns, figsize=(4.6 * columns, 3.2 * rows), squeeze=False)
        for axes, name in zip(grid.flat, names, strict=False):
            _panel(axes, PANELS[name], growth.points[name])
        for axes in list(grid.flat)[len(names) :]:
            axes.set_axis_off()
        figure.tight_layout()
        drawn = io.StringIO()
        figure.savefig(drawn, format="svg", metadata={"Date": None})
        plt.close(figure)
    return drawn.getvalue()


def _panel(axes: Any, panel: Panel, points: Sequence[Point]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    for name, colour, marker in zip(panel.drawn, _SERIES, "os", strict=False):
        # A logarithm has no place for a cost that is lost in the noise.
        shown = [point for point in points if point.figures[name] > 0]
        xs, ys = [point.x for point in shown], [point.figures[name] for point in shown]
        heading = panel.figures[name][0]
        axes.plot(xs, ys, color=colour, marker=marker, markersize=5, linewidth=1.6, label=heading)
        limited = [point for point in shown if point.notes]
        axes.plot(
            [point.x for point in limited],
            [point.figures[name] for point in limited],
            color=colour,
            marker=marker,
            markersize=5,
            linestyle="",
            markerfacecolor=_PAPER,
            zorder=3,
        )
        if name == next(iter(panel.figures)):
            axes.vlines(
                xs, [max(p.lowest, p.figures[name] / _DECADE) for p in shown], [p.highest for p in shown], colour
            )
    axes.set(xscale="log", yscale="log", title=panel.title, xlabel=panel.x_label, ylabel=panel.y_label)
    xs = [point.x for point in points]
    axes.set_xticks(xs, [size_text(x) if panel.name == "bytes" else f"{x:,}" for x in xs])
    axes.xaxis.set_minor_locator(NullLocator())
    low, high = axes.get_ylim()
    middle = (low * high) ** 0.5
    axes.set_ylim(min(low, middle / _DECADE**0.5), max(high, middle * _DECADE**0.5))
    # A few values in between where the axis is short, full decades where it is long.
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < _DECADE**2.5 else (1,)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axes.grid(visible=True)
    axes.set_axisbelow(True)
    if len(panel.drawn) > 1:
        axes.legend(facecolor=_PAPER, edgecolor=_GRID, framealpha=1)


def size_text(size_bytes: int) -> str:
    """A number of bytes, in binary units where it is a multiple of them."""
    for unit, factor in (("Mi", 1 << 20), ("Ki", 1 << 10)):
        if size_bytes >= factor and size_bytes % factor == 0:
            return f"{size_bytes // factor} {unit}"
    return f"{size_bytes:,}"
