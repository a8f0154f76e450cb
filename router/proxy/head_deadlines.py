"""The deadline until which an attempt must have its response head, for all attempts of one HTTP port with one timer.

All have the same time, so the one that began first is due first: a timer of the event loop for each would cost more than all
else that an attempt does before it opens a stream.
"""

import asyncio
from typing import Protocol


class AwaitsHead(Protocol):
    """What waits for a response head."""

    deadline_at: float
    """When it is due, in seconds of the event loop's clock; written by `HeadDeadlines.add`."""

    def head_late(self) -> None:
        """The head has not come in time."""


class HeadDeadlines:
    """Calls `head_late` of each attempt that is not discarded within `timeout_s` seconds, in the order in which they were added."""

    def __init__(self, loop: asyncio.AbstractEventLoop, timeout_s: float) -> None:
        self._loop = loop
        self._timeout_s = timeout_s
        self._waiting: dict[AwaitsHead, None] = {}
        """In the order of their deadlines; bounded as the requests are of which they are."""
        self._timer: asyncio.TimerHandle | None = None

    def add(self, attempt: AwaitsHead) -> None:
        """The head of `attempt` is due from now on; it must be no attempt that waits already."""
        attempt.deadline_at = self._loop.time() + self._timeout_s
        self._waiting[attempt] = None
        if self._timer is None:
            self._timer = self._loop.call_at(attempt.deadline_at, self._due)

    def discard(self, attempt: AwaitsHead) -> None:
        """The head has come, or nobody wants it any more; without effect if `attempt` does not wait."""
        self._waiting.pop(attempt, None)

    def _due(self) -> None:
        self._timer = None
        now = self._loop.time()
        late = []
        for attempt in self._waiting:
            if attempt.deadline_at > now:
                self._timer = self._loop.call_at(attempt.deadline_at, self._due)
                break
            late.append(attempt)
        for attempt in late:
            self._loop.call_soon(self._late, attempt)  # each on its own: an error of one costs no other its end

    def _late(self, attempt: AwaitsHead) -> None:
        if attempt in self._waiting:  # its head may have come since
            del self._waiting[attempt]
            attempt.head_late()
