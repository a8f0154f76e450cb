"""Messages of one registration stream between its reader and its processing.

Reading goes on while an update waits for a tunnel: that is how a live worker is told from a dead one. Every message is a complete
report, so when too many wait the oldest are dropped.
"""

import asyncio
from collections import deque
from enum import Enum, auto

from tunnel_protocol.control.stargate_pb2 import InferenceServerRegistration
from tunnel_protocol.limit import Limit

INBOX = Limit("registration.inbox", bytes=4 << 20, pieces=64)
"""Messages of one stream that wait, by their encoded size; one message of any size always fits."""

_MAX_BYTES = INBOX.bytes or 0
_MAX_MESSAGES = INBOX.pieces or 0


class Signal(Enum):
    """What can come out of an inbox besides messages."""

    RECOVERED = auto()
    """The tunnel works again: the last report counts again."""
    CLOSED = auto()
    """The worker has closed its side; nothing follows."""
    FAILED = auto()
    """Reading failed; nothing follows."""


class Inbox:
    """One producer, one consumer. Holds at most 64 messages and, beyond one of any size, 4 MiB."""

    def __init__(self) -> None:
        self._items: deque[InferenceServerRegistration | Signal] = deque()
        self._sizes: deque[int] = deque()
        self._bytes = 0
        self._recovered = False
        self._waiting: asyncio.Future[None] | None = None

    def put(self, message: InferenceServerRegistration) -> None:
        """Add a message."""
        size = message.ByteSize()
        while self._sizes and (len(self._sizes) >= _MAX_MESSAGES or self._bytes + size > _MAX_BYTES):
            self._items.popleft()
            self._bytes -= self._sizes.popleft()
        self._items.append(message)
        self._sizes.append(size)
        self._bytes += size
        self._wake()

    def end(self, signal: Signal) -> None:
        """Nothing follows, because of `signal`; what is waiting is still handed out."""
        self._items.append(signal)
        self._wake()

    def recovered(self) -> None:
        """Hand out `Signal.RECOVERED` next."""
        self._recovered = True
        self._wake()

    async def get(self) -> InferenceServerRegistration | Signal:
        """The next item, in order."""
        while not self._items and not self._recovered:
            self._waiting = asyncio.get_running_loop().create_future()
            try:
                await self._waiting
            finally:
                self._waiting = None
        if self._recovered:
            self._recovered = False
            return Signal.RECOVERED
        item = self._items.popleft()
        if self._sizes:
            self._bytes -= self._sizes.popleft()
        return item

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)
