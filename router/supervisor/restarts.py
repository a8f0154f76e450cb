"""When a process that ended is started again: at once the first time, later and later if it does not stay. Without I/O."""

from typing import Final

FIRST_PAUSE_S: Final = 0.1
"""Seconds until the first restart."""

LONGEST_PAUSE_S: Final = 30.0
"""Longest pause in seconds; each pause is twice the one before."""

STABLE_S: Final = 60.0
"""Seconds of serving after which an end counts as the first again."""


class RestartPolicy:
    """The pauses of one process."""

    def __init__(self) -> None:
        self._pause_s = FIRST_PAUSE_S
        self.restarts = 0
        """Restarts so far."""

    def pause_s(self, served_s: float) -> float:
        """The pause before the next start of a process that ended after serving for `served_s` seconds (0 if it never served)."""
        if served_s >= STABLE_S:
            self._pause_s = FIRST_PAUSE_S
        pause_s = self._pause_s
        self._pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
        self.restarts += 1
        return pause_s
