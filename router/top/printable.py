"""Text of strangers on a terminal: names of models, workers and requests, shown so that they cannot control it.

Control characters (ECMA-48: C0, DEL, C1), format characters (bidirectional overrides, zero-width joiners), surrogates,
unassigned code points and line separators are shown as Python escapes. Combining marks are kept, two of them in a row at most.
"""

import unicodedata
from typing import Final

_ESCAPED: Final = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
_COMBINING: Final = frozenset({"Mn", "Me"})
_MAX_COMBINING: Final = 2
_WIDE: Final = frozenset({"W", "F"})


def printable(text: str) -> str:
    """`text` on one line, with escapes for what a terminal would act on."""
    if text.isascii() and text.isprintable():
        return text
    shown: list[str] = []
    marks = 0
    for character in text:
        category = unicodedata.category(character)
        marks = marks + 1 if category in _COMBINING else 0
        if category in _ESCAPED or marks > _MAX_COMBINING or (marks and not shown):
            shown.append(character.encode("unicode_escape").decode("ascii"))
        elif category == "Zs":
            shown.append(" ")
        else:
            shown.append(character)
    return "".join(shown)


def cells(text: str) -> int:
    """Columns of a terminal that printable `text` takes (Unicode annex 11)."""
    if text.isascii():
        return len(text)
    return sum(map(_cells_of, text))


def cut(text: str, width: int) -> str:
    """Printable `text` in at most `width` columns; an ellipsis stands for the end that is left out."""
    if cells(text) <= width:
        return text
    if width <= 0:
        return ""
    kept: list[str] = []
    free = width - 1
    for character in text:
        free -= _cells_of(character)
        if free < 0:
            break
        kept.append(character)
    return "".join(kept) + "…"


def padded(text: str, width: int, *, right: bool = False) -> str:
    """Printable `text` in exactly `width` columns; `right` aligns it to the right."""
    short = cut(text, width)
    blanks = " " * (width - cells(short))
    return blanks + short if right else short + blanks


def _cells_of(character: str) -> int:
    if character.isascii():
        return 1
    if unicodedata.category(character) in _COMBINING:
        return 0
    return 2 if unicodedata.east_asian_width(character) in _WIDE else 1
