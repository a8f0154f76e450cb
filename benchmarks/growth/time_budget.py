"""The time that one trial may take."""

import time


class OutOfTimeError(Exception):
    """The rest of a trial's time is too short for a point."""

    def __init__(self) -> None:
        super().__init__("the time of the trial was used up (--limit-s)")


class TimeBudget:
    """Counts down from `limit_s` seconds."""

    def __init__(self, limit_s: float) -> None:
        self._ends_at_s = time.monotonic() + limit_s

    def left_s(self, wanted_s: float) -> float:
        """The seconds that are left. Raises `OutOfTimeError` if they are fewer than `wanted_s`."""
        left_s = self._ends_at_s - time.monotonic()
        if left_s < wanted_s:
            raise OutOfTimeError
        return left_s
