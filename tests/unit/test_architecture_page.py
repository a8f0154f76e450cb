"""docs/architecture.md names files, classes and functions: they exist."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
QUESTIONS = re.findall(r"^\| (Where .+\?) \| `(.+?)` \| `(.+?)` \|$", PAGE, re.MULTILINE)
PICTURE = re.findall(r"^  (\w+/[\w/]+\.py) +([A-Za-z_][\w.]*)", PAGE, re.MULTILINE)


def defined(path: Path) -> set[str]:
    """Functions, classes, and `Class.method` of a module."""
    found: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.ClassDef):
            found.add(node.name)
            found |= {
                f"{node.name}.{each.name}"
                for each in node.body
                if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)
            }
    return found


def test_the_page_answers_the_questions_of_a_newcomer_and_draws_the_way_of_a_chunk() -> None:
    assert len(QUESTIONS) == 5
    assert len(PICTURE) > 12


@pytest.mark.parametrize(("path", "name"), [*((path, name) for _, path, name in QUESTIONS), *PICTURE])
def test_what_the_page_names_exists(path: str, name: str) -> None:
    assert name in defined(ROOT / path)
