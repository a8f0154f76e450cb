"""Finds that a registration stream has been silent for too long, at the cost of one stored time per message.

A timer per message would be started and cancelled a thousand times a second by a thousand workers. This one runs through: when it
fires it looks how long the wait has lasted, and runs on for the rest.
"""

import asyncio
from collections.abc import Callable


class IdleTimer:
    """Calls `on_idle` when a wait has lasted for `idle_s` seconds, once per wait; never if that is None."""

    def __init__(self, idle_s: float | None, on_idle: Callable[[], None]) -> None:
        self._idle_s = idle_s
        self._on_idle = on_idle
        self._loop = asyncio.get_running_loop()
        self._since: float | None = None
        self._timer: asyncio.TimerHandle | None = None

    def wait_begins(self) -> None:
        """From now on it is waited for a message."""
        if self._idle_s is None:
            return
        self._since = self._loop.time()
        if self._timer is None:
            self._timer = self._loop.call_at(self._since + self._idle_s, self._check)

    def wait_ends(self) -> None:
        """There is a message."""
        self._since = None

    def close(self) -> None:
        """No call follows."""
        self._since = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _check(self) -> None:
        self._timer = None
        if self._since is None or self._idle_s is None:
            return  # the next wait starts the timer
        ends_at = self._since + self._idle_s
        # The clock of a timer is coarser than that of the loop.
        if self._loop.time() < ends_at - 0.001:
            self._timer = self._loop.call_at(ends_at, self._check)
        else:
            self._since = None
            self._on_idle()
