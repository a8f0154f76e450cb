"""The points as Markdown tables, and their place in a page of the documentation."""

from collections.abc import Iterator
from pathlib import Path

from benchmarks.growth.panels import PANELS, Growth, Panel, Point
from benchmarks.growth.plot import size_text

BEGIN, END = "<!-- growth: begin -->", "<!-- growth: end -->"
"""Lines of the page; what is between them is written by the benchmark."""


def tables(growth: Growth) -> str:
    """One table for each panel with points, with the varied number as its head, and what ended each panel."""
    parts = [growth.conditions + "\n"]
    for name, panel in PANELS.items():
        if points := growth.points.get(name):
            parts.append("\n".join(_table(panel, points)) + "\n")
        if reason := growth.ended.get(name):
            parts.append(f"No more points of {panel.name}: {reason}.\n")
    return "\n".join(parts)


def replace_in(page: Path, text: str) -> None:
    """Put the tables between the two lines of the page. Raises OSError, and ValueError if the lines are not there."""
    before, begin, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _old, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{page} does not have the lines {BEGIN} and {END}")
    page.write_text(f"{before}{BEGIN}\n\n{text}\n{END}{after}", encoding="utf-8")


def _table(panel: Panel, points: list[Point]) -> Iterator[str]:
    xs = [size_text(point.x) if panel.name == "bytes" else f"{point.x:,}" for point in points]
    yield f"| {panel.x_label} | " + " | ".join(xs) + " |"
    yield "| --- |" + " ---: |" * len(points)
    for number, (name, (heading, decimals)) in enumerate(panel.figures.items()):
        yield f"| {heading} | " + " | ".join(f"{point.figures[name]:,.{decimals}f}" for point in points) + " |"
        if number == 0 and any(point.trials > 1 for point in points):
            spread = (f"{point.lowest:,.{decimals}f}-{point.highest:,.{decimals}f}" for point in points)
            yield "| lowest and highest | " + " | ".join(spread) + " |"
