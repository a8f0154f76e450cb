"""The first import of structlog in a process, without the packages it only looks for.

structlog imports `rich` if it is installed, for tracebacks on a console, and `greenlet`. A router uses neither, and the two with
what they import take 9 MiB of its memory. They are installed for other reasons: `rich` by the terminal client (`router top`).
"""

import sys
from typing import Final

_HIDDEN: Final = ("rich", "greenlet")


def import_structlog() -> None:
    """Import structlog as if they were not installed; they can be imported afterwards. Call it before anything imports it."""
    hidden = [name for name in _HIDDEN if name not in sys.modules]
    modules: dict[str, object] = sys.modules  # type: ignore[assignment]  # None is documented: "makes its import fail"
    for name in hidden:
        modules[name] = None
    try:
        import structlog  # noqa: F401
    finally:
        for name in hidden:
            del modules[name]
