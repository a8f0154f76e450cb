"""The time that a request may take to arrive: a head from its first byte to its end, a body between two of its bytes.

One timer per connection, and only while a request arrives in several deliveries of the socket; it is not moved by what arrives.
"""

import asyncio
import math
from typing import Protocol

from router.http1.request import ClientRequest
from router.http1.request_parser import RequestParser


class ArrivalCallbacks(Protocol):
    """The connection."""

    @property
    def awaits_input(self) -> bool:
        """Whether what its client sends is still of interest."""

    @property
    def reading(self) -> bool:
        """Whether its client is being read; if not, it is not the client who is late."""

    def head_late(self) -> None:
        """The head that is arriving is late."""

    def body_late(self, request: ClientRequest) -> None:
        """No byte of the body of `request` came for too long."""


class Arrival:
    """Watches one connection; `stop` must be called at its end. Times in seconds, `math.inf` for no limit."""

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
        """Whether a limit is running."""
        return self._timer is not None

    def piece(self) -> None:
        """A part of a request is here; the rest of it has to come in time."""
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
        """The client is read again: until now it was not its turn."""
        self._last_received_at = self._loop.time()

    def stop(self) -> None:
        """The connection is over."""
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
            due = now + self._body_s  # the client waits to be asked for it
        else:
            due = self._last_received_at + self._body_s
        if due > now:
            if due < math.inf:
                self._timer = self._loop.call_at(due, self._check)
        elif request is None:
            owner.head_late()
        else:
            owner.body_late(request)
