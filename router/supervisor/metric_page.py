"""A page of metrics in the text format of Prometheus (0.0.4) as families of samples, and back. Without I/O."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from router.telemetry.families import number


class MetricPageError(ValueError):
    """A page is not in the text format; `line` is the first line that is not."""

    def __init__(self, line: str) -> None:
        super().__init__(f"not a sample: {line[:200]}")
        self.line = line


@dataclass(slots=True)
class MetricFamily:
    """One family: its `HELP` and `TYPE`, and its samples by name with labels, in the order of the page."""

    name: str
    help: str = ""
    kind: str = "untyped"
    samples: dict[str, float] = field(default_factory=dict)


def parse_page(page: str) -> dict[str, MetricFamily]:
    """The families of `page` by name. Raises `MetricPageError`."""
    families: dict[str, MetricFamily] = {}
    current = MetricFamily("")
    for line in page.split("\n"):
        if not line:
            continue
        if line.startswith(("# HELP ", "# TYPE ")):
            _, word, name, *rest = line.split(" ", 3)
            current = families.setdefault(name, MetricFamily(name))
            text = rest[0] if rest else ""
            if word == "HELP":
                current.help = text
            else:
                current.kind = text
        elif not line.startswith("#"):
            series, _, text = line.rpartition(" ")
            value = _value(text)
            if value is None or not series.startswith(current.name or "\n"):
                raise MetricPageError(line)
            current.samples[series] = value
    return families


def render_page(families: Iterable[MetricFamily]) -> str:
    """The page of `families`, sorted by name; those without samples are left out."""
    out: list[str] = []
    for family in sorted(families, key=lambda one: one.name):
        if family.samples:
            out.append(f"# HELP {family.name} {family.help}\n# TYPE {family.name} {family.kind}\n")
            out += [f"{series} {number(value)}\n" for series, value in family.samples.items()]
    return "".join(out)


def _value(text: str) -> float | None:
    if text.isascii() and text.isdigit() and len(text) <= 30:
        return int(text)
    try:
        value = float(text)
    except ValueError:
        return None
    return value if "_" not in text and (math.isfinite(value) or text in ("+Inf", "-Inf", "NaN")) else None
