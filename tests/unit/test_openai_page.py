"""docs/openai.md has a section for every code that the front can send, and for no other."""

import ast
import re
from pathlib import Path

from router.openai.errors import CODES

ROOT = Path(__file__).resolve().parents[2]
CODE_ARGUMENT = {"Refusal": 2, "KeyRefused": 2, "LimitRefusal": 2, "bad_request": 0}
"""Position of the code in what makes a refusal."""


def test_every_code_has_a_section_on_the_page_and_every_section_a_code() -> None:
    page = (ROOT / "docs/openai.md").read_text(encoding="utf-8")
    assert re.findall(r"^### `(\w+)`$", page, re.MULTILINE) == list(CODES)


def test_every_refusal_of_the_sources_has_a_code_of_the_table() -> None:
    found = set()
    for path in (ROOT / "router/openai").rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        constants = {
            target.id: node.value.value
            for node in tree.body
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        for node in ast.walk(tree):
            name = node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else ""
            place = CODE_ARGUMENT.get(name)
            if place is None or not isinstance(node, ast.Call) or len(node.args) <= place:
                continue
            given = node.args[place]
            code = given.value if isinstance(given, ast.Constant) else constants.get(ast.unparse(given))
            if code is not None:
                found.add(code)
    assert found <= CODES.keys()
    assert len(found) > 15
