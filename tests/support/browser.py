"""A real browser for tests of pages: the `chromium` of the system, driven by Playwright, which downloads nothing.

Tests that need it skip, with the reason, where it is not installed (docs/testing.md, "Pages").
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

OTHER_NAME = "router.example"
CHROMIUM = shutil.which("chromium")
needs_browser = pytest.mark.skipif(
    CHROMIUM is None, reason="needs the program `chromium` (Debian: apt install chromium)"
)


@contextmanager
def browser() -> Iterator[Any]:
    """A headless browser, for which `OTHER_NAME` is this host; `new_context` of it is a user of their own."""
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        # Without a sandbox, because continuous integration runs as root; it shows pages of the test only.
        options = ["--no-sandbox", "--disable-gpu", f"--host-resolver-rules=MAP {OTHER_NAME} 127.0.0.1"]
        running = driver.chromium.launch(executable_path=CHROMIUM, args=options)
        yield running
        running.close()


class Watched:
    """A page that is open, and what went wrong on it."""

    def __init__(self, context: Any) -> None:
        self.page = context.new_page()
        self.problems: list[str] = []
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("console", self._on_console)
        self.requested: list[str] = []
        self.page.on("request", lambda request: self.requested.append(request.url))

    def _on_console(self, message: Any) -> None:
        if message.type == "error" and "Failed to load resource" not in message.text:
            self.problems.append(message.text)

    def row(self, table: str, key: str) -> Any:
        """The row of a table with this text in one of its cells."""
        return self.page.locator(f"#{table} tbody tr").filter(has_text=key)

    def cell(self, table: str, key: str, column: str) -> str:
        """The text of one cell."""
        heads = [text.strip() for text in self.page.locator(f"#{table} thead th").all_inner_texts()]
        return str(self.row(table, key).first.locator("td").nth(heads.index(column)).inner_text())
