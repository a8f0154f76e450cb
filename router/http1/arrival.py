"""The time that a request may take to arrive: a head from its first byte to its end, a body between two of its bytes.

One timer per connection, set only while a request arrives in several reads of the socket; received bytes do not re-arm it.
"""

import asyncio
import math
from typing import Protocol

from router.http1.request import ClientRequest
from router.http1.request_parser import RequestParser


class ArrivalCallbacks(Protocol):
    """What `Arrival` asks of the connection it watches, and the timeouts it reports to it."""

    @property
    def awaits_input(self) -> bool:
        """Whether bytes that the client sends are still read as requests."""

    @property
    def reading(self) -> bool:
        """Whether the connection reads from the client; while it does not, no limit runs out."""

    def head_late(self) -> None:
        """The head that is arriving was not complete within the limit."""

    def body_late(self, request: ClientRequest) -> None:
        """No byte of the body of `request` arrived within the limit."""


class Arrival:
    """Watches one connection; `stop` must be called when it ends. Times in seconds, `math.inf` for no limit."""

    __slots__ = (
        "_body_s",
        "_head_number",
        "_head_s",
        "_head_since",
        "_last_received_at",
        "_loop",
        "_owner",
        "_parser",
        "_timer",
    )

    def __init__(
        self,
        owner: ArrivalCallbacks,
        parser: RequestParser,
        loop: asyncio.AbstractEventLoop,
        head_s: float,
        body_s: float,
    ) -> None:
        self._owner: ArrivalCallbacks = owner
        self._parser = parser
        self._loop = loop
        self._head_s = head_s
        self._body_s = body_s
        self._head_number = -1
        self._head_since = 0.0
        self._last_received_at = 0.0
        self._timer: asyncio.TimerHandle | None = None

    @property
    def waiting(self) -> bool:
        """Whether the timer is set."""
        return self._timer is not None

    def piece(self) -> None:
        """A part of a request has arrived: set the timer for the rest of it."""
        now = self._loop.time()
        self._last_received_at = now
        parser = self._parser
        if parser.in_head and parser.heads != self._head_number:
            self._head_number = parser.heads
            self._head_since = now
        if self._timer is None:
            after = min(self._head_s, self._body_s)
            if after < math.inf:
                self._timer = self._loop.call_later(after, self._check)

    def read_on(self) -> None:
        """The connection reads from the client again: the limits start anew."""
        self._last_received_at = self._loop.time()

    def stop(self) -> None:
        """Cancel the timer: the connection has ended."""
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()

    def _check(self) -> None:
        self._timer = None
        owner, parser = self._owner, self._parser
        if not owner.awaits_input or parser.between_requests:
            return
        now = self._loop.time()
        request = parser.arriving
        if not owner.reading:
            due = now + min(self._head_s, self._body_s)
        elif request is None:
            due = self._head_since + self._head_s
        elif request.body.invite is not None:
            due = now + self._body_s  # the client waits for `100 Continue`
        else:
            due = self._last_received_at + self._body_s
        if due > now:
            if due < math.inf:
                self._timer = self._loop.call_at(due, self._check)
        elif request is None:
            owner.head_late()
        else:
            owner.body_late(request)
