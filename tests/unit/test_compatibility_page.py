"""docs/compatibility.md: every row has all columns and names a test that exists."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "compatibility.md").read_text(encoding="utf-8")
ROWS = [
    [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
    for line in PAGE.splitlines()
    if line.startswith("| ") and not line.startswith(("| Behaviour", "| ---"))
]


def test_the_page_has_a_table() -> None:
    assert ROWS


@pytest.mark.parametrize("row", ROWS, ids=[row[0][:60] for row in ROWS])
def test_a_row_is_complete_and_its_tests_exist(row: list[str]) -> None:
    assert len(row) == 5
    assert all(row)
    tests = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", row[4])
    assert tests, "name the test as `path::function`"
    for path, name in tests:
        tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
        assert name in {
            each.name for each in ast.walk(tree) if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)
        }
