"""`top --once`: the same as text, all rows and all columns of it, for people who redirect it and for scripts."""

import json

import msgspec

from router.operators.live_document import Live
from router.top.ordering import Order, filtered, ordered
from router.top.overview import overview
from router.top.printable import cells, padded
from router.top.spans import text_of
from router.top.tables import Table

_WIDTH = 160
"""Columns of the terminal that the lines above the tables are made for."""


def as_json(body: bytes) -> str:
    """The document of the router, with escapes for all characters beyond ASCII, so that it is safe on a terminal."""
    return json.dumps(msgspec.json.decode(body), indent=2) + "\n"


def as_text(live: Live, tables: tuple[tuple[Table, Order], ...], words: str) -> str:
    """Overview and `tables`, with the rows that match the filter `words`."""
    lines = [text_of(line) for line in overview(live, _WIDTH)]
    for table, order in tables:
        lines += ["", *_table(table, live, order, words)]
    return "\n".join(lines) + "\n"


def _table(table: Table, live: Live, order: Order, words: str) -> list[str]:
    everything = table.rows(live)
    rows = ordered(table, filtered(table, everything, words), order)
    size = str(len(everything)) if len(rows) == len(everything) else f"{len(rows)} of {len(everything)}"
    lines = [f"{table.title} ({size})"]
    if not rows:
        return lines
    grid = [[column.title for column in table.columns], *([c.text(row) for c in table.columns] for row in rows)]
    widths = [max(cells(line[index]) for line in grid) for index in range(len(table.columns))]
    for line in grid:
        shown = (
            padded(cell, width, right=column.number)
            for cell, width, column in zip(line, widths, table.columns, strict=True)
        )
        lines.append("  ".join(shown).rstrip())
    return lines
