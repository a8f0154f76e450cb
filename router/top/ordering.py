"""Which rows of a table are shown, and in which order: filter and sorting."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from router.top.tables import Column, Table, Value

_NUMBERS: Final = re.compile(r"([0-9]{1,18})")

Part = tuple[int, int, str]


@dataclass(frozen=True, slots=True)
class Order:
    """A column to sort by."""

    column: str
    descending: bool

    @classmethod
    def of(cls, table: Table) -> "Order":
        """The order that `table` has at first."""
        return cls(table.order, table.descending)

    def next(self, table: Table, step: int) -> "Order":
        """By the column `step` further on."""
        names = [column.name for column in table.columns]
        return self.by(table.columns[(names.index(self.column) + step) % len(names)])

    def by(self, column: Column) -> "Order":
        """By another column; numbers begin with the largest."""
        return Order(column.name, column.number)

    def reversed(self) -> "Order":
        """The other way round."""
        return Order(self.column, not self.descending)


class OrderError(Exception):
    """A column that a table does not have; the message names those that it has."""


def order_called(table: Table, text: str) -> Order:
    """The order that `text` names: a column, after `-` with the largest first. Raises `OrderError`."""
    name = text.removeprefix("-")
    if table.column(name) is None:
        names = ", ".join(column.name for column in table.columns)
        raise OrderError(f"table `{table.name}` has no column `{name}`; it has {names}")
    return Order(name, text.startswith("-"))


def ordered(table: Table, rows: Sequence[Any], order: Order) -> list[Any]:
    """`rows` by `order`: names as people count (`w2` before `w10`), unknown values last either way, equal ones by key."""
    column = table.column(order.column)
    if column is None:
        return list(rows)
    known = [row for row in rows if column.value(row) is not None]
    unknown = [row for row in rows if column.value(row) is None]
    known.sort(key=lambda row: _by_key(table, row))
    known.sort(key=lambda row: _comparable(column.value(row)), reverse=order.descending)
    return known + sorted(unknown, key=lambda row: _by_key(table, row))


def filtered(table: Table, rows: Sequence[Any], text: str) -> list[Any]:
    """The rows that have each word of `text`, in any case, in a cell.

    `column:word` means that column, if the table has one of this name; a `-` before it means rows without it.
    """
    words = [_Word(table, word) for word in text.casefold().split()]
    return [row for row in rows if all(word.matches(row) for word in words)] if words else list(rows)


class _Word:
    """One word of a filter."""

    def __init__(self, table: Table, word: str) -> None:
        self._wanted = not (word.startswith("-") and len(word) > 1)
        word = word if self._wanted else word[1:]
        name, colon, rest = word.partition(":")
        column = table.column(name) if colon else None
        self._columns: tuple[Column, ...] = table.columns if column is None else (column,)
        self._text = word if column is None else rest

    def matches(self, row: Any) -> bool:
        """Whether `row` is shown as far as this word is concerned."""
        return any(self._text in column.text(row).casefold() for column in self._columns) == self._wanted


def _comparable(value: Value) -> tuple[float, tuple[Part, ...]]:
    """Numbers as they are, names by their parts. A column has only one of both."""
    return (0.0, _parts(value)) if isinstance(value, str) else (value or 0.0, ())


def _parts(text: str) -> tuple[Part, ...]:
    parts = _NUMBERS.split(text.casefold())
    return tuple((0, int(part), "") if index % 2 else (1, 0, part) for index, part in enumerate(parts) if part)


def _by_key(table: Table, row: Any) -> tuple[Part, ...]:
    return _parts(" ".join(map(str, table.key(row))))
