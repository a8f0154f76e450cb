"""Sends the state of the router to everybody who watches it: computed and encoded once a second for all of them together.

Without a viewer nothing runs. A viewer that does not take what is sent is not sent more, and after some seconds its
connection ends; it may come again. Source: docs/api.md, "Events".
"""

import asyncio
from typing import Final, Protocol

import msgspec
import structlog

from router.http1.response import Response, ResponseFlow
from router.operators.live_document import Live
from router.operators.reply import NOT_STORED
from tunnel_protocol.limit import Limit

_log = structlog.get_logger()

VIEWERS: Final = Limit("operators.viewers", pieces=128)
"""Streams of events at a time."""

PERIOD_S: Final = 1.0
"""Seconds between two events, and how old a state may be that is shown again."""

SLOW_PERIODS: Final = 5
"""Periods in which a viewer takes nothing before its stream ends."""

_VIEWERS: Final = VIEWERS.pieces or 0
_HEADERS: Final = [
    (b"content-type", b"text/event-stream"),
    NOT_STORED,
    (b"x-accel-buffering", b"no"),  # nginx would keep events back
]
_NEW_SECONDS: Final = 3
"""Seconds of the history in an event: those before may have been missed by a late one."""


class LiveSource(Protocol):
    """Where the state comes from."""

    async def read(self) -> Live:
        """State, history and last requests now."""


class Viewer:
    """One stream of events; implements `ResponseFlow`."""

    def __init__(self, feed: "LiveFeed", response: Response) -> None:
        self._feed = feed
        self.response = response
        self.paused = False
        self.missed = 0
        """Events that were not sent since the last one that was."""

    def pause_response(self) -> None:
        """The viewer reads slower than events are made."""
        self.paused = True

    def resume_response(self) -> None:
        """The viewer reads again."""
        self.paused = False

    def client_gone(self) -> None:
        """The viewer has gone."""
        self._feed.leave(self)

    def client_stalled(self, status: int, reason: str) -> None:
        """Cannot be: the response has begun."""


class LiveFeed:
    """The viewers of one port."""

    def __init__(self, source: LiveSource, *, period_s: float = PERIOD_S) -> None:
        self._source = source
        self._period_s = period_s
        self._viewers: set[Viewer] = set()
        self._sending: asyncio.Task[None] | None = None
        self._reading: asyncio.Task[Live] | None = None
        self._last: Live | None = None
        self._last_at = float("-inf")
        self._sent: dict[str, int] = {}
        self._closed = False

    @property
    def viewers(self) -> int:
        """Number of streams."""
        return len(self._viewers)

    async def current(self) -> Live:
        """The state, at most a period old; readers at the same time share one look."""
        if self._last is not None and asyncio.get_running_loop().time() - self._last_at < self._period_s:
            return self._last
        if self._reading is None or self._reading.done():
            self._reading = asyncio.create_task(self._read())
        return await asyncio.shield(self._reading)

    async def begin(self, response: Response) -> ResponseFlow | None:
        """Answer with a stream of events; None if the answer is a refusal."""
        if self._closed or len(self._viewers) >= _VIEWERS:
            response.send(503, [(b"retry-after", b"10"), NOT_STORED])
            return None
        viewer = Viewer(self, response)
        self._viewers.add(viewer)  # before the wait, so that many at once are counted
        try:
            live = await self.current()
        except BaseException:
            self._viewers.discard(viewer)
            raise
        if self._closed or response.over:
            self._viewers.discard(viewer)
            response.send(503, [NOT_STORED])
            return None
        response.start(200, _HEADERS)
        response.write(b"retry: 1000\n\n" + event(b"full", live))
        if self._sending is None or self._sending.done():
            self._sent = {one.process: one.number for one in reversed(live.requests)}
            self._sending = asyncio.create_task(self._send_all(), name="events for operators")
            self._sending.add_done_callback(self._on_sending_ended)
        return viewer

    def leave(self, viewer: Viewer) -> None:
        """Send nothing more to `viewer`."""
        self._viewers.discard(viewer)
        if not self._viewers and self._sending is not None:
            self._sending.cancel()
            self._sending = None

    def close(self) -> None:
        """End all streams, and begin no other."""
        self._closed = True
        for viewer in list(self._viewers):
            self.leave(viewer)
            viewer.response.end()

    # -----------------------------------------------------------------------------------------------------------------

    async def _read(self) -> Live:
        live = await self._source.read()
        self._last, self._last_at = live, asyncio.get_running_loop().time()
        return live

    async def _send_all(self) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            due = max(due + self._period_s, loop.time())
            await asyncio.sleep(due - loop.time())
            self._send(await self._read())

    def _send(self, live: Live) -> None:
        update = full = b""
        for viewer in list(self._viewers):
            if not viewer.response.started:
                continue  # it is about to begin with a state of its own
            if viewer.paused:
                viewer.missed += 1
                if viewer.missed >= SLOW_PERIODS:
                    _log.info("a viewer of the operators' page is too slow; its stream ends")
                    self.leave(viewer)
                    viewer.response.break_off()
            elif viewer.missed:
                full = full or event(b"full", live)
                viewer.missed = 0
                viewer.response.write(full)
            else:
                update = update or event(b"update", self._new(live))
                viewer.response.write(update)
        for one in reversed(live.requests):
            self._sent[one.process] = one.number

    def _new(self, live: Live) -> Live:
        """Of `live` what the event before did not have."""
        sent = self._sent
        return Live(
            state=live.state,
            history=live.history[-_NEW_SECONDS:],
            requests=[one for one in live.requests if one.number > sent.get(one.process, 0)],
        )

    def _on_sending_ended(self, task: asyncio.Task[None]) -> None:
        if task.cancelled():
            return
        _log.error("events for operators ended unexpectedly; viewers connect again", exc_info=task.exception())
        for viewer in list(self._viewers):
            self.leave(viewer)
            viewer.response.break_off()


def event(name: bytes, live: Live) -> bytes:
    """One server-sent event; its data is one line."""
    return b"event: %b\ndata: %b\n\n" % (name, msgspec.json.encode(live))
