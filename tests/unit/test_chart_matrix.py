"""The matrix of charts in deploy/README.md: every tested chart is in it, and every cell says whether it is tested."""

import re
from pathlib import Path

import pytest

from support.charts import BARE_ADDRESS, ROWS, changed

PAGE = (Path(__file__).parents[2] / "deploy" / "README.md").read_text(encoding="utf-8")
TABLE = [
    [cell.strip() for cell in line[1:-1].split("|")]
    for line in PAGE.partition("## Charts of the reference")[2].splitlines()
    if line.startswith("| ") and not line.startswith(("| Chart", "| ---"))
]


def test_every_chart_that_is_started_has_a_row() -> None:
    shown = " ".join(row[0] for row in TABLE)
    assert all(row.chart in shown for row in ROWS)
    assert BARE_ADDRESS.chart.replace(" and", ",") in shown


@pytest.mark.parametrize("row", TABLE, ids=[row[0] for row in TABLE])
def test_every_cell_says_whether_it_is_tested(row: list[str]) -> None:
    assert len(row) == 6
    for cell in row[1:]:
        assert re.search(r"\b(?:un)?tested\b|^none$|^-$|^no option for it$", cell), cell


def test_rows_are_made_by_replacing_or_inserting_arguments() -> None:
    base = ("--a=1", "--b", "--c=3")
    assert changed(base, "--a=2", "--d=4", after="--a") == ("--a=2", "--d=4", "--b", "--c=3")
    assert changed(base, "--e", "--e", without=("--b",)) == ("--a=1", "--c=3", "--e", "--e")
