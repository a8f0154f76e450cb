"""What the operators' pages know of requests: the last ones, and counts of each of the last sixty seconds. Bounded, without I/O.

It implements the port `RequestEnds`. A report costs about a microsecond, whether somebody looks or not; everything else is
computed for a reader.
"""

from collections import deque
from collections.abc import Callable
from typing import Final

from router.operators.durations import quantiles, step_of
from router.operators.live_document import SECONDS, Request, Second
from router.ports.request_ends import RequestEnd
from tunnel_protocol.limit import Limit

LAST: Final = Limit("operators.requests", pieces=50)
"""Requests that the list has."""

NAME: Final = Limit("operators.request_name", bytes=1_024)
"""Characters of a name in the list that a client chose: the rest is left out."""

_LAST: Final = LAST.pieces or 0
_NAME: Final = NAME.bytes or 0
_SERVER_ERROR: Final = 500
_NUMBERS_PER_SECOND: Final = 100_000
"""More than a process can answer; numbers stay below 2 ** 53, which is exact in JavaScript."""


class _Counts:
    """The requests that ended in one second, which is whole monotonic seconds."""

    __slots__ = ("errors", "first_tokens", "requests", "second", "totals")

    def __init__(self) -> None:
        self.begin(-1)

    def begin(self, second: int) -> None:
        """Count from zero."""
        self.second = second
        self.requests = 0
        self.errors = 0
        self.first_tokens: dict[int, int] = {}
        self.totals: dict[int, int] = {}


class RequestLog:
    """The last requests of one process and their history."""

    def __init__(self, process: str, clock: Callable[[], float], unix_clock: Callable[[], float]) -> None:
        """`process` names this process in the list; `clock` returns the monotonic seconds of the reports."""
        self.newest = int(unix_clock() * _NUMBERS_PER_SECOND)
        """The number of the last request. Numbers start at the time of day, so that they grow over restarts, too."""
        self._process = process
        self._clock = clock
        self._unix_clock = unix_clock
        self._last: deque[RequestEnd] = deque(maxlen=_LAST)
        self._ring = [_Counts() for _ in range(SECONDS + 1)]

    # --- RequestEnds -------------------------------------------------------------------------------------------------

    def request_ended(self, end: RequestEnd) -> None:
        """Count a request, and keep it until fifty others have ended."""
        self.newest += 1
        self._last.append(end)
        second = int(end.ended_at)
        counts = self._ring[second % (SECONDS + 1)]
        if counts.second != second:
            counts.begin(second)
        counts.requests += 1
        if end.status >= _SERVER_ERROR or end.end == "truncated":
            counts.errors += 1
        step = step_of(end.duration_s)
        counts.totals[step] = counts.totals.get(step, 0) + 1
        if end.first_token_s is not None:
            step = step_of(end.first_token_s)
            counts.first_tokens[step] = counts.first_tokens.get(step, 0) + 1

    # --- for readers -------------------------------------------------------------------------------------------------

    def history(self, seconds: int = SECONDS, *, countable: bool = False) -> list[Second]:
        """The last whole seconds, oldest first; `countable`: with counts in place of quantiles."""
        now = int(self._clock())
        offset = round(self._unix_clock() - self._clock())
        return [self._second(now - ago, offset, countable=countable) for ago in range(min(seconds, SECONDS), 0, -1)]

    def requests(self, after: int = 0) -> list[Request]:
        """Of the last requests those with a number above `after`, newest first."""
        offset = self._unix_clock() - self._clock()
        newest = self.newest
        wanted = min(len(self._last), newest - after)
        return [self._request(newest - back, self._last[-1 - back], offset) for back in range(wanted)]

    def _second(self, second: int, offset: int, *, countable: bool) -> Second:
        counts = self._ring[second % (SECONDS + 1)]
        found = Second(at=second + offset)
        if counts.second != second:
            return found
        found.requests, found.errors = counts.requests, counts.errors
        if countable:
            found.first_token_counts, found.total_counts = dict(counts.first_tokens), dict(counts.totals)
        else:
            found.first_token_ms, found.total_ms = quantiles(counts.first_tokens), quantiles(counts.totals)
        return found

    def _request(self, number: int, end: RequestEnd, offset: float) -> Request:
        first_token_s = end.first_token_s
        return Request(
            number=number,
            process=self._process,
            at=round(end.ended_at + offset, 3),
            request_id=end.request_id[:_NAME],
            routing_key=None if end.routing_key is None else end.routing_key[:_NAME],
            model=end.model[:_NAME],
            inference_server_id=end.inference_server_id,
            cluster_id=end.cluster_id,
            attempts=end.attempts,
            status=end.status,
            first_token_ms=None if first_token_s is None else round(first_token_s * 1000, 3),
            duration_ms=round(end.duration_s * 1000, 3),
            end=end.end,
            reason=end.reason,
            requested_method=end.requested_method[:_NAME],
            input_tokens=end.input_tokens,
            priority=end.priority,
        )
