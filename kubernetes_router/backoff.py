"""Pauses before a failed request is repeated: they double up to a limit, and are random so that replicas spread out."""

import random
from collections.abc import Callable

FIRST_S = 0.8
LONGEST_S = 30.0
_JITTER = 0.5
"""A pause is longer than planned by up to this share of it, but not than `LONGEST_S`."""


class Backoff:
    """The pauses of one series of failures."""

    def __init__(self, jitter: Callable[[], float] = random.random) -> None:
        """`jitter` returns values from 0 to 1."""
        self._jitter = jitter
        self._planned_s = FIRST_S

    def next_s(self) -> float:
        """The seconds to wait now."""
        planned_s = self._planned_s
        self._planned_s = min(2 * planned_s, LONGEST_S)
        return min(planned_s * (1 + _JITTER * self._jitter()), LONGEST_S)

    def reset(self) -> None:
        """The request has succeeded: begin again with the first pause."""
        self._planned_s = FIRST_S
