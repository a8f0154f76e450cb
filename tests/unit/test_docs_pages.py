"""The pages: each is in the navigation of the site, and links and anchors between them resolve, on the site and where they lie.

`make docs` has mkdocs say the same, strictly; here nothing but the text is needed.
"""

import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NAVIGATION = re.findall(r"^ +- [^:]+: (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
LINKED = re.search(r"^for name in (.+); do$", (ROOT / "scripts/docs").read_text(), re.MULTILINE)


def pages() -> list[str]:
    """All that are written for readers, relative to the root."""
    found = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("deploy/*.md"), *ROOT.glob("examples/**/*.md")]
    return sorted(path.relative_to(ROOT).as_posix() for path in found)


def prose(text: str) -> Iterator[str]:
    """The lines outside of code; code within a line is left out."""
    fenced = False
    for line in text.splitlines():
        if line.startswith("```"):
            fenced = not fenced
        elif not fenced and not line.startswith("    "):
            yield line if line.startswith("#") else re.sub(r"`[^`]*`", "", line)


def of_a_repository(heading: str) -> str:
    """The anchor where Markdown is shown as it lies (GitHub and others)."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def of_the_site(heading: str) -> str:
    """The anchor that mkdocs makes (Python-Markdown, `toc`)."""
    plain = unicodedata.normalize("NFKD", heading).encode("ascii", "ignore").decode()
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", plain).strip().lower())


def anchors(text: str) -> set[str]:
    """Those that are the same in both places."""
    headings = [
        re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", line.lstrip("#")) for line in prose(text) if re.match("#+ ", line)
    ]
    return {of_a_repository(heading) for heading in headings if of_a_repository(heading) == of_the_site(heading)}


def broken(page: Path, text: str) -> list[str]:
    """Links of `text`, as the content of `page`, that lead to nothing."""
    found = []
    for link in (link for line in prose(text) for link in re.findall(r"\]\(<?([^)>\s]+)", line)):
        name, _, anchor = link.partition("#")
        if re.match(r"[a-z]+:", link):
            continue
        target = (page.parent / name).resolve() if name else page
        if (name and not target.is_file()) or not target.is_relative_to(ROOT):
            found.append(f"{link}: no such file")
        elif anchor and anchor not in anchors(text if target == page else target.read_text()):
            found.append(f"{link}: no such anchor")
    return found


def test_every_page_is_in_the_navigation_once() -> None:
    assert sorted(NAVIGATION) == pages()


def test_every_page_is_at_a_place_that_the_site_is_built_of() -> None:
    assert LINKED is not None
    places = LINKED[1].split()
    assert [name for name in places if not (ROOT / name).exists()] == []
    assert [name for name in NAVIGATION if name.partition("/")[0] not in places] == []


@pytest.mark.parametrize("name", pages())
def test_links_and_anchors_lead_somewhere(name: str) -> None:
    assert broken(ROOT / name, (ROOT / name).read_text()) == []


def test_every_picture_is_shown() -> None:
    text = "".join((ROOT / name).read_text() for name in pages())
    assert [path.name for path in (ROOT / "docs/images").iterdir() if f"images/{path.name})" not in text] == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("[a](limits.md) [b](https://example.org/x.md) [c](../README.md#read-on)", []),
        ("# One `thing`, and another\n[a](#one-thing-and-another)", []),
        ("`[a](nowhere.md)`\n```\n[a](nowhere.md)\n```\n    [a](nowhere.md)", []),
        ("[a](nowhere.md)", ["nowhere.md: no such file"]),
        ("![a](images/nothing.svg)", ["images/nothing.svg: no such file"]),
        ("[a](images/)", ["images/: no such file"]),
        ("[a](../../outside.md)", ["../../outside.md: no such file"]),
        ("[a](limits.md#nowhere)", ["limits.md#nowhere: no such anchor"]),
        ("```\n# here\n```\n[a](#here)", ["#here: no such anchor"]),
        ("# a & b\n[a](#a--b)", ["#a--b: no such anchor"]),  # the site has #a-b
    ],
)
def test_what_is_broken_is_found(text: str, found: list[str]) -> None:
    assert broken(ROOT / "docs" / "page.md", text) == found
