"""docs/limits.md and the declared limits say the same."""

import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import certs
import kubernetes_router
import router
import stargate_client
import tunnel_protocol
from router.config.settings import OPTIONS
from tunnel_protocol.limit import Limit

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "limits.md"


def _declared() -> dict[str, Limit]:
    found: dict[str, Limit] = {}
    for package in (certs, tunnel_protocol, router, kubernetes_router, stargate_client):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if module.name.endswith(("__main__", "_speedups")) or "__mypyc" in module.name:
                continue
            for value in vars(importlib.import_module(module.name)).values():
                if isinstance(value, Limit):
                    assert found.setdefault(value.name, value) is value, f"{value.name} is declared twice"
    return found


def _cell(text: str) -> str | None:
    return None if text == "-" else text.strip("`")


def _number(text: str) -> int | None:
    return None if text == "-" else int(text.replace(",", ""))


def _rows() -> dict[str, tuple[Limit, str]]:
    rows: dict[str, tuple[Limit, str]] = {}
    for line in PAGE.read_text().splitlines():
        if not re.match(r"\| `", line):
            continue
        name, size, pieces, option, effect, test = (cell.strip() for cell in line.strip("|").split("|"))
        assert effect, line
        limit = Limit(name.strip("`"), _number(size), _number(pieces), _cell(option))
        assert limit.name not in rows, f"{limit.name} stands twice"
        rows[limit.name] = (limit, test.strip("`"))
    return rows


def test_every_declared_limit_stands_on_the_page_with_its_values() -> None:
    rows = _rows()
    for name, limit in _declared().items():
        assert name in rows, f"{name} is missing in docs/limits.md"
        assert rows[name][0] == limit


def test_every_row_of_the_page_is_declared() -> None:
    assert set(_rows()) - set(_declared()) == set()


def test_every_row_names_a_test_that_exists() -> None:
    for name, (_, test) in _rows().items():
        path, _, function = test.partition("::")
        assert (ROOT / path).is_file(), f"{name}: {path}"
        assert f"def {function}(" in (ROOT / path).read_text(), f"{name}: {function}"


def test_a_limit_with_an_option_is_its_default() -> None:
    defaults = {option.flag: option.default for option in OPTIONS}
    changeable = [limit for limit in _declared().values() if limit.option is not None]
    assert changeable
    for limit in changeable:
        assert defaults[limit.option or ""] in (limit.bytes, limit.pieces), limit.name


def test_a_limit_that_bounds_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="neither bytes nor pieces"):
        Limit("nothing")
