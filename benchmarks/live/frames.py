"""The frames of the live page in a browser: the times between them, and tasks that keep the page from drawing."""

import shutil
import statistics
from typing import NamedTuple

_NOTE = """
window.frames_ = []; window.tasks_ = [];
new PerformanceObserver((list) => { for (const one of list.getEntries()) tasks_.push(one.duration); }).observe({type: "longtask"});
let before = null;
const note = (now) => { if (before !== null) frames_.push(now - before); before = now; requestAnimationFrame(note); };
requestAnimationFrame(note);
"""
_WIDTH, _HEIGHT = 1300, 1400
_SETTLE_MS = 2_000
_MOST_MS = 100.0


class Frames(NamedTuple):
    """Milliseconds."""

    intervals: list[float]
    """Between frames."""
    long_tasks: list[float]
    """Of at least 50 ms each."""
    rows: int
    """Workers that the page shows."""

    def report(self) -> str:
        """One line."""
        if not self.intervals:
            return "frames: not measured, there is no `chromium` or no playwright"
        late = sum(interval > _MOST_MS for interval in self.intervals)
        tasks = f"{len(self.long_tasks)} tasks over 50 ms"
        if self.long_tasks:
            tasks += f", the longest {max(self.long_tasks):.0f} ms"
        ordered = sorted(self.intervals)
        return (
            f"frames with {self.rows} workers shown: {len(ordered)}, median {statistics.median(ordered):.1f} ms, "
            f"p99 {ordered[len(ordered) * 99 // 100]:.1f} ms, longest {ordered[-1]:.1f} ms, {late} over {_MOST_MS:.0f} ms; {tasks}"
        )


def frames(url: str, seconds: float) -> Frames:
    """Open the page, let it settle, and note its frames for so long; nothing if there is no browser."""
    chromium = shutil.which("chromium")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        chromium = None
    if chromium is None:
        return Frames([], [], 0)
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": _WIDTH, "height": _HEIGHT})
        page.goto(url)
        page.locator("#workers tbody tr").first.wait_for()
        page.wait_for_timeout(_SETTLE_MS)
        page.evaluate(_NOTE)
        page.wait_for_timeout(seconds * 1000)
        found = Frames(page.evaluate("frames_"), page.evaluate("tasks_"), page.locator("#workers tbody tr").count())
        browser.close()
    return found
