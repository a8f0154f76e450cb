"""docs/reference-rows.md: both lists are complete, and each row names tests that exist or a reason."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "reference-rows.md").read_text(encoding="utf-8")


def rows_of(section: str) -> list[list[str]]:
    """The cells of the rows of the table under a heading."""
    text = PAGE.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    return [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        for line in text.splitlines()
        if re.match(r"\| \d", line)
    ]


BEHAVIOUR, INCIDENTS = rows_of("Behaviour"), rows_of("Incidents")


@cache
def functions(path: str) -> frozenset[str]:
    """The functions defined in a file of tests."""
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    return frozenset(each.name for each in ast.walk(tree) if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef))


def test_no_row_is_missing() -> None:
    assert [row[0] for row in BEHAVIOUR] == [str(number) for number in range(1, 77)]
    assert [row[0] for row in INCIDENTS] == [str(number) for number in range(1, 41)]


@pytest.mark.parametrize("row", BEHAVIOUR + INCIDENTS, ids=lambda row: f"{row[0]} {row[-2][:50]}")
def test_a_row_is_complete_and_names_tests_that_exist_or_a_reason(row: list[str]) -> None:
    assert len(row) == (3 if row in BEHAVIOUR else 4)
    assert all(row)
    *_, test = row
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", test)
    assert named or test.startswith(("Left out: ", "Cannot happen here: "))
    assert test.count("::") == len(named)
    for path, name in named:
        assert name in functions(path), f"{path}::{name}"
