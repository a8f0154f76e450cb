"""Sends the state of the router to everybody who watches it: computed and encoded once a second for all of them together.

Without a viewer nothing runs. A viewer that does not take what is sent is not sent more, and after some seconds its
connection ends; it may come again. Source: docs/api.md, "Events".
"""

import asyncio
import zlib
from typing import Final, Protocol

import msgspec
import structlog

from router.http1.request import ClientRequest
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
_GZIP: Final = (b"content-encoding", b"gzip")
_GZIP_HEADER: Final = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"
"""RFC 1952, section 2.3. The trailer, a checksum of all, never comes: the stream has no end."""
_LEVEL: Final = 1
_NEW_SECONDS: Final = 3
"""Seconds of the history in an event: those before may have been missed by a late one."""


class LiveSource(Protocol):
    """Where the state comes from."""

    async def read(self) -> Live:
        """State, history and last requests now."""


class Viewer:
    """One stream of events; implements `ResponseFlow`."""

    def __init__(self, feed: "LiveFeed", response: Response, *, compressed: bool) -> None:
        self._feed = feed
        self.response = response
        self.compressed = compressed
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
        self._compressor = zlib.compressobj(_LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS)
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

    async def begin(self, request: ClientRequest, response: Response) -> ResponseFlow | None:
        """Answer with a stream of events, compressed if the client can; None if the answer is a refusal."""
        if self._closed or len(self._viewers) >= _VIEWERS:
            response.send(503, [(b"retry-after", b"10"), NOT_STORED])
            return None
        viewer = Viewer(self, response, compressed=_takes_gzip(request))
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
        response.start(200, [*_HEADERS, _GZIP] if viewer.compressed else _HEADERS)
        if viewer.compressed:
            response.write(_GZIP_HEADER)
        self._event(b"full", live, b"retry: 1000\n\n").send(viewer)
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
        full, update = self._event(b"full", live), self._event(b"update", self._new(live))
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
                viewer.missed = 0
                full.send(viewer)
            else:
                update.send(viewer)
        for one in reversed(live.requests):
            self._sent[one.process] = one.number

    def _event(self, name: bytes, live: Live, before: bytes = b"") -> "_Event":
        return _Event(self._compressor, name, live, before)

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


class _Event:
    """One event, encoded and compressed at most once, when the first viewer needs it so.

    A compressed one ends with a full flush (RFC 1951; `Z_FULL_FLUSH` of zlib): it refers to nothing before it, so that
    one and the same block continues the streams of all viewers.
    """

    def __init__(self, compressor: "zlib._Compress", name: bytes, live: Live, before: bytes) -> None:
        self._compressor = compressor
        self._name = name
        self._live = live
        self._before = before
        self._text = self._block = b""

    def send(self, viewer: Viewer) -> None:
        """Write it to the stream of `viewer`."""
        if not self._text:
            data = msgspec.json.encode(self._live)  # one line
            self._text = b"%bevent: %b\ndata: %b\n\n" % (self._before, self._name, data)
        if viewer.compressed and not self._block:
            self._block = self._compressor.compress(self._text) + self._compressor.flush(zlib.Z_FULL_FLUSH)
        viewer.response.write(self._block if viewer.compressed else self._text)


def _takes_gzip(request: ClientRequest) -> bool:
    """Whether the client names gzip in `Accept-Encoding`, and does not refuse it (RFC 9110, section 12.5.3)."""
    for coding in request.first.get(b"accept-encoding", b"").lower().split(b","):
        name, _, weight = coding.replace(b" ", b"").partition(b";")
        if name == b"gzip":
            return weight not in (b"q=0", b"q=0.0", b"q=0.00", b"q=0.000")
    return False
