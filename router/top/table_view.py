"""One table on a screen: its rows in order, a cursor that stays with its row, and the part of both that is in view."""

from collections.abc import Sequence
from typing import Any, Final

from router.operators.live_document import Live
from router.top.ordering import Order, filtered, ordered
from router.top.printable import cells, padded
from router.top.spans import Line, Role, Span
from router.top.tables import Column, Key, Table

_MAX_NAME: Final = 40
"""Columns of the terminal that a column of names gets at most."""

_MIN_NAME: Final = 8
"""Columns of the terminal in which a name is still of use."""

_DOWN, _UP = "▼", "▲"


class TableView:
    """State of one table."""

    def __init__(self, table: Table, order: Order | None = None) -> None:
        self.table = table
        self.order = order or Order.of(table)
        self.rows: list[Any] = []
        self.total = 0
        """Rows without the filter."""
        self.first_column = 1
        """The first column in view beside column 0."""
        self._cursor = 0
        self._key: Key | None = None
        self._top = 0
        self._to_show: str | None = None
        """A column that comes into view with the next lines."""

    @property
    def chosen(self) -> Any | None:
        """The row at the cursor; None in an empty table."""
        return self.rows[self._cursor] if self.rows else None

    @property
    def cursor(self) -> int:
        """Number of the row at the cursor, from 0."""
        return self._cursor

    def update(self, live: Live, words: str) -> None:
        """Take the rows of `live` that match the filter `words`.

        The cursor stays at its row wherever that is now; at the first row it stays at the first, to follow what is newest.
        """
        everything: Sequence[Any] = self.table.rows(live)
        self.total = len(everything)
        self.rows = ordered(self.table, filtered(self.table, everything, words), self.order)
        if self._key is None:
            self._cursor = 0
            return
        keys = [self.table.key(row) for row in self.rows]
        self._place(keys.index(self._key) if self._key in keys else self._cursor)

    def move(self, by: int) -> None:
        """Move the cursor by so many rows, at most to the first or last."""
        self._place(self._cursor + by)

    def move_to_line(self, line: int) -> bool:
        """Move the cursor to a line of the window, counted from 0 below the header; False if no row is there."""
        if 0 <= self._top + line < len(self.rows):
            self._place(self._top + line)
            return True
        return False

    def sort(self, order: Order) -> None:
        """Sort by `order`, and bring its column into view."""
        self.order = order
        self.rows = ordered(self.table, self.rows, order)
        self._to_show = order.column
        self._key = None
        self._place(0)

    def show_columns(self, by: int) -> None:
        """Bring other columns into view: `by` further to the right."""
        self.first_column = max(1, min(len(self.table.columns) - 1, self.first_column + by))

    def lines(self, width: int, height: int, *, with_cursor: bool = True) -> list[Line]:
        """Header and rows in `width` columns and at most `height` lines, with the cursor in view."""
        shown = max(0, height - 1)
        self._top = max(min(self._top, self._cursor), self._cursor - shown + 1, 0)
        self._top = max(0, min(self._top, len(self.rows) - shown))
        columns = self._columns_with_sorted(width)
        header: Line = []
        for column, size in columns:
            header += [*_gap(header, Role.HEADER), self._title(column, size)]
        rest = width - sum(cells(span.text) for span in header)
        more = ("◂" if self.first_column > 1 else "") + ("▸" if columns[-1][0] is not self.table.columns[-1] else "")
        header.append(Span(padded(more if rest >= len(more) else "", max(0, rest), right=True), Role.HEADER))
        lines = [header]
        for index, row in enumerate(self.rows[self._top : self._top + shown], self._top):
            lines.append(_row(columns, row, width, at_cursor=with_cursor and index == self._cursor))
        if not self.rows and shown:
            lines.append([Span("none" if not self.total else f"none of {self.total} matches the filter", Role.LABEL)])
        return lines

    def column_at(self, x: int, width: int) -> Column | None:
        """The column at `x` of the header."""
        for column, size in self._columns_in(width):
            if x <= size:
                return column
            x -= size + 1
        return None

    # -----------------------------------------------------------------------------------------------------------------

    def _place(self, index: int) -> None:
        self._cursor = max(0, min(index, len(self.rows) - 1))
        self._key = self.table.key(self.rows[self._cursor]) if self._cursor else None

    def _title(self, column: Column, size: int) -> Span:
        is_sorted = column.name == self.order.column
        mark = (_DOWN if self.order.descending else _UP) if is_sorted else ""
        return Span(padded(column.title + mark, size, right=column.number), Role.SORTED if is_sorted else Role.HEADER)

    def _columns_with_sorted(self, width: int) -> list[tuple[Column, int]]:
        """The columns in view, after rows were sorted with the column that they were sorted by."""
        name, self._to_show = self._to_show, None
        index = next((at for at, column in enumerate(self.table.columns) if column.name == name), 0)
        if index:
            self.first_column = min(self.first_column, index)
            while self.first_column < index and name not in {column.name for column, _ in self._columns_in(width)}:
                self.first_column += 1
        return self._columns_in(width)

    def _columns_in(self, width: int) -> list[tuple[Column, int]]:
        """The columns in view with their sizes: the first, then those from `first_column` on that fit."""
        first = self.table.columns[0]
        found = [(first, self._size(first, max(8, width // 4)))]
        free = width - found[0][1]
        largest = min(_MAX_NAME, max(_MIN_NAME, width // 8))
        for column in self.table.columns[self.first_column :]:
            size = self._size(column, _MAX_NAME if column.is_long else largest)
            if size + 1 > free:
                if free > _MIN_NAME and not column.number:
                    found.append((column, free - 1))
                break
            found.append((column, size))
            free -= size + 1
        return found

    def _size(self, column: Column, largest: int) -> int:
        """As wide as the widest cell, the title with its mark and, for names, the largest size allow."""
        title = cells(column.title) + 1
        widest = max((cells(column.text(row)) for row in self.rows), default=0)
        return max(title, widest if column.number else min(widest, largest))


def _row(columns: list[tuple[Column, int]], row: Any, width: int, *, at_cursor: bool) -> Line:
    around = Role.CURSOR if at_cursor else Role.PLAIN
    line: Line = []
    for column, size in columns:
        text = padded(column.text(row), size, right=column.number)
        line += [*_gap(line, around), Span(text, around if at_cursor else column.role(row))]
    rest = width - sum(cells(span.text) for span in line)
    if rest > 0:
        line.append(Span(" " * rest, around))
    return line


def _gap(line: Line, role: Role) -> Line:
    """What stands before the next cell of `line`."""
    return [Span(" ", role)] if line else []
