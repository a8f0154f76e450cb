"""Lines as they are shown: pieces of printable text, each with what it means. A terminal gives the meaning its style."""

from enum import Enum
from typing import NamedTuple

from router.top.printable import cells, cut


class Role(Enum):
    """What a piece of a line means. The text says it too: nothing is told by colour alone."""

    PLAIN = "plain"
    LABEL = "label"
    GOOD = "good"
    WARNING = "warning"
    BAD = "bad"
    HEADER = "header"
    SORTED = "sorted"
    """The header of the column that rows are sorted by."""
    CHOSEN = "chosen"
    """The name of the table that is shown."""
    CURSOR = "cursor"


class Span(NamedTuple):
    """A piece of a line."""

    text: str
    """Printable (`printable.py`)."""
    role: Role = Role.PLAIN


Line = list[Span]


def text_of(line: Line) -> str:
    """The text alone, without blanks at its end."""
    return "".join(span.text for span in line).rstrip()


def fitted(line: Line, width: int) -> Line:
    """`line` in at most `width` columns."""
    kept: Line = []
    free = width
    for span in line:
        size = cells(span.text)
        if size > free:
            kept.append(Span(cut(span.text, free), span.role))
            break
        kept.append(span)
        free -= size
    return kept
