"""Lines that are longer or more than a screen shows, and the part of them that is in view."""

from router.top.spans import Line, Span


class LinesView:
    """State of one page of text."""

    def __init__(self, lines: list[Line]) -> None:
        self.lines = lines
        self._top = 0
        self._left = 0
        self._height = 1

    def scroll(self, down: int = 0, right: int = 0) -> None:
        """Show other lines, or other parts of them."""
        self._top = max(0, self._top + down)
        self._left = max(0, self._left + right)

    def scroll_pages(self, down: int) -> None:
        """Show the next page, or the one before."""
        self.scroll(down * max(1, self._height - 1))

    def window(self, height: int) -> list[Line]:
        """The lines in view; those longer than the terminal are cut by it."""
        self._height = height
        self._top = max(0, min(self._top, len(self.lines) - height))
        longest = max((sum(len(span.text) for span in line) for line in self.lines), default=0)
        self._left = min(self._left, max(0, longest - 1))
        return [_from(line, self._left) for line in self.lines[self._top : self._top + height]]


def _from(line: Line, left: int) -> Line:
    """`line` without its first `left` characters."""
    kept: Line = []
    for span in line:
        if left < len(span.text):
            kept.append(Span(span.text[left:], span.role))
        left = max(0, left - len(span.text))
    return kept
