"""The queue between the connection of one registration stream and the processing of its messages, as they are encoded.

Reading goes on while an update waits for a tunnel, because messages show that the worker is alive. Every message is a
complete report, so when too many wait the oldest are dropped.
"""

import asyncio
from collections import deque
from enum import Enum, auto

from tunnel_protocol.limit import Limit

INBOX = Limit("registration.inbox", bytes=4 << 20, pieces=64)
"""Limit of the waiting messages of one stream, by number and size in bytes; one message of any size always fits."""

_MAX_BYTES = INBOX.bytes or 0
_MAX_MESSAGES = INBOX.pieces or 0


class Signal(Enum):
    """What `Inbox.get` can return besides messages."""

    RECOVERED = auto()
    """The tunnel works again: apply the last report again."""
    CLOSED = auto()
    """The worker half-closed the stream; no further item follows."""
    IDLE = auto()
    """Nothing has arrived for the idle timeout."""


class Inbox:
    """A queue for one producer and one consumer. Holds at most 64 messages and, except for a single larger one, 4 MiB."""

    def __init__(self) -> None:
        self._items: deque[bytes | Signal] = deque()
        self._sizes: deque[int] = deque()
        self._bytes = 0
        self._recovered = False
        self._idle = False
        self._waiting: asyncio.Future[None] | None = None

    @property
    def awaited(self) -> bool:
        """Whether `get` waits for an item."""
        return self._waiting is not None and not self._waiting.done()

    def put(self, message: bytes) -> None:
        """Add a message; drops the oldest ones beyond the limit."""
        size = len(message)
        while self._sizes and (len(self._sizes) >= _MAX_MESSAGES or self._bytes + size > _MAX_BYTES):
            self._items.popleft()
            self._bytes -= self._sizes.popleft()
        self._items.append(message)
        self._sizes.append(size)
        self._bytes += size
        self._wake()

    def end(self, signal: Signal) -> None:
        """No further message follows: `get` returns the waiting ones, then `signal`."""
        self._items.append(signal)
        self._wake()

    def recovered(self) -> None:
        """Let `get` return `Signal.RECOVERED` next."""
        self._recovered = True
        self._wake()

    def idle(self) -> None:
        """Let a running `get` return `Signal.IDLE`, unless there is another item."""
        self._idle = True
        self._wake()

    async def get(self) -> bytes | Signal:
        """Wait for the next item and return it."""
        self._idle = False
        while (item := self._take()) is None:
            if self._idle:
                return Signal.IDLE
            self._waiting = asyncio.get_running_loop().create_future()
            try:
                await self._waiting
            finally:
                self._waiting = None
        return item

    def _take(self) -> bytes | Signal | None:
        """The next item if there is one now, else None."""
        if self._recovered:
            self._recovered = False
            return Signal.RECOVERED
        if not self._items:
            return None
        item = self._items.popleft()
        if self._sizes:
            self._bytes -= self._sizes.popleft()
        return item

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)
