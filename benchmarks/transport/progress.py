"""Shows the progress of a run on standard error: one line, rewritten on a terminal, repeated every few seconds elsewhere."""

import sys
import time
from typing import TextIO

_EVERY_S = 5.0


class ProgressLine:
    """A `Progress` callback; call `end` after the last run."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._live = self._stream.isatty()
        self._told = time.monotonic()

    def __call__(self, name: str, done: int, wanted: int) -> None:
        """Show the progress, unless it was shown a short time ago."""
        now = time.monotonic()
        if self._live:
            self._stream.write(f"\r\x1b[K{name}: {done} of {wanted}")
            self._stream.flush()
        elif now - self._told >= _EVERY_S:
            self._told = now
            self._stream.write(f"{name}: {done} of {wanted}\n")
            self._stream.flush()

    def end(self) -> None:
        """Clear the line on a terminal; nothing elsewhere."""
        if self._live:
            self._stream.write("\r\x1b[K")
            self._stream.flush()
