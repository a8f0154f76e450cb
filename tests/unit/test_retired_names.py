"""Names that were replaced do not come back (docs/architecture.md, "Words")."""

import ast
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = (
    "certs",
    "tunnel_protocol",
    "router",
    "kubernetes_router",
    "stargate_client",
    "llm_request_router",
    "benchmarks",
    "tests",
)

NOWHERE = re.compile(r"\b(rooms?|houses?|Patience|Desk|a_house|COMPILED_ROOMS)\b|_(room|house)\b", re.IGNORECASE)
"""Words of no English text and no identifier here."""

RETIRED = {
    "router": {
        "OwnAnswer",
        "RequestAccount",
        "has_left",
        "Publication",
        "Member",
        "MemberT",
        "Install",
        "Streams",
        "Effective",
        "look",
        "told",
        "further",
        "rehearsal",
        "with_lots_of_its_own",
        "heard_at",
        "_heard_at",
        "proxy_settings",
        "tunnel_settings",
    },
    "tunnel_protocol": {
        "EngineStream",
        "FastConnection",
        "frame_data",
        "frame_limit",
        "frame_stop",
        "frame_reset",
        "_starved",
        "_arrived",
        "_farewell",
        "holes",
        "SeenNumbers",
        "LastingKeys",
        "too_slow",
        "opening",
        "heard_at",
        "touch",
        "undisturbed",
        "awake",
        "look",
        "told",
        "ENGINES",
        "MakeEngineFactory",
    },
}
PATTERNS = {
    "router": re.compile(r"_Nobody|[A-Z]\w*Owner|_?tell_\w+|spill\w*"),
    "tunnel_protocol": re.compile(r"_Nobody\w*|[A-Z]\w*Owner|_?tell_\w+"),
}
KEPT = {
    # The name of a metric is a promise to dashboards.
    "spills_total",
}


def identifiers(path: Path) -> set[str]:
    """Every name that a module uses or defines, imported modules included."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Name):
            found.add(node.id)
        elif isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.arg):
            found.add(node.arg)
        elif isinstance(node, ast.alias):
            found |= {*node.name.split("."), node.asname or ""}
    return found


def sources(package: str) -> Iterator[Path]:
    return (path for path in sorted((ROOT / package).rglob("*.py")) if "_pb2" not in path.name)


def tokens(path: Path) -> list[tokenize.TokenInfo]:
    with path.open("rb") as file:
        return list(tokenize.tokenize(file.readline))


@pytest.mark.parametrize("package", sorted(RETIRED))
def test_identifiers_that_were_replaced_are_gone(package: str) -> None:
    found = {
        f"{path.relative_to(ROOT)}: {name}"
        for path in sources(package)
        for name in identifiers(path) - KEPT
        if name in RETIRED[package] or PATTERNS[package].fullmatch(name)
    }
    assert found == set()


@pytest.mark.parametrize("package", PACKAGES)
def test_code_and_comments_are_free_of_metaphors(package: str) -> None:
    found = [
        f"{path.relative_to(ROOT)}:{token.start[0]}: {token.string[:80]}"
        for path in sources(package)
        if path != Path(__file__)
        for token in tokens(path)
        if token.type in (tokenize.NAME, tokenize.STRING, tokenize.COMMENT) and NOWHERE.search(token.string)
    ]
    assert found == []


def test_pages_are_free_of_metaphors() -> None:
    pages = [*(ROOT / "docs").rglob("*.md"), *ROOT.glob("*.md")]
    found = [
        f"{path.relative_to(ROOT)}: {line}"
        for path in pages
        for line in path.read_text(encoding="utf-8").splitlines()
        if NOWHERE.search(line)
    ]
    assert found == []
