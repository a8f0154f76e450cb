"""Counters, gauges and histograms that cost less than a microsecond per update, and their text exposition.

The metric objects of `prometheus_client` spend several microseconds on locks and label look-ups, and print `1.0` where
existing dashboards expect `1`. So the values are kept here, in plain dictionaries used by one event loop; the library is used
outside of the request path (process metrics), and its parser in tests. Format: Prometheus text format 0.0.4; the exact
spelling is described in docs/operations.md, "Metrics".
"""

import re
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Final, NamedTuple, Protocol

from tunnel_protocol.limit import Limit

Labels = tuple[str, ...]
"""Label values in the order in which the family declares its label names."""

OVERFLOW: Final = "__overflow__"
"""The label value that replaces further ones when a family has reached its limit."""

SERIES: Final = Limit("metrics.series", pieces=100_000)
"""Maximum number of series of one family; later ones are added up under `OVERFLOW` labels."""

_MAX_SERIES: Final = SERIES.pieces or 0

_NAME: Final = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_ESCAPES: Final = str.maketrans({"\\": r"\\", "\n": r"\n", '"': r"\""})


class MetricNameError(ValueError):
    """A metric name is not legal in the exposition format; `name` is the name with its prefix."""

    def __init__(self, name: str) -> None:
        super().__init__(f"'{name}' is not a valid metric name")
        self.name = name


class Description(NamedTuple):
    """Name, help text and label names of a family."""

    name: str
    help: str
    label_names: Labels = ()


class LabelGuard(Protocol):
    """Decides which label values a family may have; called once per new series."""

    def admit(self, family: str, label_names: Labels, labels: Labels) -> Labels:
        """The labels to use instead of `labels`: the same, or some replaced by `OVERFLOW`."""


def number(value: float) -> str:
    """Shortest decimal form, never with an exponent and never with a trailing `.0` (`1`, `0.005`, `67108864`)."""
    if isinstance(value, int):
        return str(value)
    if value != value:
        return "NaN"
    if value in (float("inf"), float("-inf")):
        return "+Inf" if value > 0 else "-Inf"
    if value.is_integer():
        return str(int(value))
    text = repr(value)
    return format(Decimal(text), "f") if "e" in text else text


def label_text(names: Sequence[str], values: Sequence[str]) -> str:
    """Labels as `a="1",b="2"`, escaped and sorted by label name."""
    pairs = sorted(zip(names, values, strict=True))
    return ",".join(f'{name}="{value.translate(_ESCAPES)}"' for name, value in pairs)


class Family:
    """Base of counters, gauges and histograms: description, limit of series, HELP and TYPE lines."""

    kind = ""

    def __init__(self, prefix: str, description: Description, guard: LabelGuard | None = None) -> None:
        """Raises `MetricNameError` if prefix and name are not a legal metric name."""
        self.full_name = prefix + description.name
        if not _NAME.fullmatch(self.full_name):
            raise MetricNameError(self.full_name)
        self.description = description
        self.label_names = description.label_names
        self._guard = guard
        self._head = f"# HELP {self.full_name} {description.help}\n# TYPE {self.full_name} {self.kind}\n"

    def series(self) -> int:
        """Current number of series."""
        raise NotImplementedError

    def lines(self, out: list[str]) -> None:
        """Append the lines of the family to `out`; none if it has no series."""
        raise NotImplementedError

    def _admitted(self, labels: Labels) -> Labels:
        if len(labels) != len(self.label_names):
            message = f"{self.full_name} takes labels {self.label_names}, not {labels}"
            raise ValueError(message)
        if self.series() >= _MAX_SERIES:
            return (OVERFLOW,) * len(labels)
        return labels if self._guard is None else self._guard.admit(self.full_name, self.label_names, labels)


class Cell:
    """The number of one series."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: float = 0.0


class _Scalar(Family):
    """One number per series."""

    def __init__(self, prefix: str, description: Description, guard: LabelGuard | None = None) -> None:
        super().__init__(prefix, description, guard)
        self._cells: dict[Labels, Cell] = {}
        self._order: list[tuple[str, Labels]] = []
        self._readers: dict[Labels, Callable[[], float]] = {}

    def series(self) -> int:
        """Current number of series."""
        return len(self._cells)

    def value(self, labels: Labels = ()) -> float:
        """The current value; 0 for a series that does not exist."""
        cell = self._cells.get(labels)
        return 0 if cell is None else cell.value

    def values(self) -> list[tuple[Labels, float]]:
        """Labels and value of each series that is not read at each scrape."""
        return [(labels, cell.value) for labels, cell in self._cells.items()]

    def track(self, read: Callable[[], float], labels: Labels = ()) -> None:
        """From now on call `read` for the value of the series at each scrape. It must be cheap."""
        admitted = self._admitted(labels)
        self._readers[admitted] = read
        self._cells[admitted] = Cell()

    def cell(self, labels: Labels = ()) -> Cell:
        """The number of the series of `labels`, which begins with 0 if there is none yet; valid until the series is removed."""
        found = self._cells.get(labels)
        if found is None:
            admitted = self._admitted(labels)
            found = self._cells.get(admitted)
            if found is None:
                found = self._cells[admitted] = Cell()
        return found

    def lines(self, out: list[str]) -> None:
        """Append one line per series, sorted; calls the readers of `track` first."""
        cells = self._cells
        for labels, read in self._readers.items():
            cells[labels].value = read()
        if not cells:
            return
        if len(self._order) != len(cells):
            self._order = sorted((self._series_name(labels), labels) for labels in cells)
        out.append(self._head)
        out.extend([f"{name} {number(cells[labels].value)}\n" for name, labels in self._order])

    def _series_name(self, labels: Labels) -> str:
        return f"{self.full_name}{{{label_text(self.label_names, labels)}}}" if labels else self.full_name


class Counter(_Scalar):
    """A number that only increases."""

    kind = "counter"

    def inc(self, labels: Labels = (), amount: float = 1) -> None:
        """Add `amount` (not negative) to the series of `labels`."""
        self.cell(labels).value += amount

    def create(self, labels: Labels = ()) -> None:
        """Create the series with value 0."""
        self.cell(labels)


class Gauge(_Scalar):
    """A number that increases and decreases, set by its owner or read at each scrape."""

    kind = "gauge"

    def set(self, value: float, labels: Labels = ()) -> None:
        """Set the series of `labels` to `value`."""
        self.cell(labels).value = value

    def inc(self, labels: Labels = (), amount: float = 1) -> None:
        """Add `amount`, which may be negative."""
        self.cell(labels).value += amount

    def remove(self, labels: Labels = ()) -> None:
        """Remove the series; no effect if there is none."""
        self._readers.pop(labels, None)
        if self._cells.pop(labels, None) is not None:
            self._order = []


class BoundCounter:
    """One series of a counter, found once; it begins with the first `inc` or `add`."""

    __slots__ = ("_cell", "_counter", "_labels")

    def __init__(self, counter: Counter, labels: Labels) -> None:
        self._counter = counter
        self._labels = labels
        self._cell: Cell | None = None

    def inc(self) -> None:
        """Add 1."""
        cell = self._cell
        if cell is None:
            cell = self._cell = self._counter.cell(self._labels)
        cell.value += 1.0

    def add(self, amount: int) -> None:
        """Add `amount` (not negative)."""
        cell = self._cell
        if cell is None:
            cell = self._cell = self._counter.cell(self._labels)
        cell.value += amount


class Distribution:
    """The values of one series of a histogram: observations per bucket (not cumulative) and their sum."""

    __slots__ = ("_bounds", "counts", "sum", "texts")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0
        self.texts: list[str] = []

    def observe(self, value: float) -> None:
        """Count `value` in the first bucket whose bound is not below it."""
        bounds = self._bounds
        low, high = 0, len(bounds)
        while low < high:  # `bisect_left`, which compares objects when compiled
            middle = (low + high) >> 1
            if bounds[middle] < value:
                low = middle + 1
            else:
                high = middle
        self.counts[low] += 1
        self.sum += value


class Histogram(Family):
    """A distribution over fixed upper bounds."""

    kind = "histogram"

    def __init__(
        self, prefix: str, description: Description, bounds: Sequence[float], guard: LabelGuard | None = None
    ) -> None:
        super().__init__(prefix, description, guard)
        self.bounds = tuple(bounds)
        self._cells: dict[Labels, Distribution] = {}
        self._order: list[Labels] = []

    def series(self) -> int:
        """Current number of series."""
        return len(self._cells)

    def count(self, labels: Labels = ()) -> int:
        """Number of observed values."""
        cell = self._cells.get(labels)
        return 0 if cell is None else sum(cell.counts)

    def observe(self, value: float, labels: Labels = ()) -> None:
        """Count `value` in the first bucket whose bound is not below it."""
        self.cell(labels).observe(value)

    def cell(self, labels: Labels = ()) -> Distribution:
        """The values of the series of `labels`, which is empty if there was none."""
        found = self._cells.get(labels)
        if found is None:
            admitted = self._admitted(labels)
            found = self._cells.get(admitted)
            if found is None:
                found = self._cells[admitted] = Distribution(self.bounds)
        return found

    def lines(self, out: list[str]) -> None:
        """Append cumulative buckets, sum and count per series."""
        if not self._cells:
            return
        if len(self._order) != len(self._cells):
            self._order = sorted(self._cells)
        out.append(self._head)
        for labels in self._order:
            cell = self._cells[labels]
            texts = cell.texts or self._texts(labels, cell)
            total = 0
            for text, count in zip(texts, cell.counts, strict=False):
                total += count
                out.append(f"{text} {total}\n")
            out.append(f"{texts[-2]} {number(cell.sum)}\n")
            out.append(f"{texts[-1]} {total}\n")

    def _texts(self, labels: Labels, cell: Distribution) -> list[str]:
        name = self.full_name
        bounds = [*(number(bound) for bound in self.bounds), "+Inf"]
        own = label_text(self.label_names, labels)
        before = f"{own}," if own else ""
        texts = [f'{name}_bucket{{{before}le="{le}"}}' for le in bounds]
        braces = f"{{{own}}}" if own else ""
        cell.texts = [*texts, f"{name}_sum{braces}", f"{name}_count{braces}"]
        return cell.texts


class BoundHistogram:
    """One series of a histogram, found once; it begins with the first `observe`."""

    __slots__ = ("_cell", "_histogram", "_labels")

    def __init__(self, histogram: Histogram, labels: Labels) -> None:
        self._histogram = histogram
        self._labels = labels
        self._cell: Distribution | None = None

    def observe(self, value: float) -> None:
        """Count `value`."""
        cell = self._cell
        if cell is None:
            cell = self._cell = self._histogram.cell(self._labels)
        cell.observe(value)
