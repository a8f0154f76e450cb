"""A line on standard error that says how far a run is: rewritten on a terminal, one every few seconds elsewhere."""

import sys
import time
from typing import TextIO

_EVERY_S = 5.0


class ProgressLine:
    """Call it with what runs, how many are over and how many are wanted; `end` when nothing runs any more."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._live = self._stream.isatty()
        self._told = time.monotonic()

    def __call__(self, name: str, done: int, wanted: int) -> None:
        """Say it if it is time to."""
        now = time.monotonic()
        if self._live:
            self._stream.write(f"\r\x1b[K{name}: {done} of {wanted}")
            self._stream.flush()
        elif now - self._told >= _EVERY_S:
            self._told = now
            self._stream.write(f"{name}: {done} of {wanted}\n")
            self._stream.flush()

    def end(self) -> None:
        """Leave an empty line for what comes next."""
        if self._live:
            self._stream.write("\r\x1b[K")
            self._stream.flush()
