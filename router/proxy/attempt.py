"""One try of one request on one inference server: open a stream, send head and body, relay the response.

One deadline applies from the start of opening the stream to the response head; after the head there is only an optional idle
timeout. Everything is a callback from the exchange; only waiting for stream credit needs a task. Source: docs/proxy.md,
"Attempts".
"""

import asyncio
from enum import IntEnum
from typing import Final

import structlog
from mypy_extensions import mypyc_attr

from router.http1.request import RequestBody
from router.http1.response import ResponseWriter
from router.ports.tunnels import Exchange, ExchangeSink, TunnelError, TunnelSet
from router.proxy.head_deadlines import HeadDeadlines
from router.proxy.replay import ReplayBuffer
from router.proxy.upload import Upload
from tunnel_protocol.head import RequestHead, ResponseHead

_log = structlog.get_logger()

TIMED_OUT: Final = "quic request timed out"


@mypyc_attr(allow_interpreted_subclasses=True)
class AttemptCallbacks:
    """What an attempt reports to its request."""

    __slots__ = ()

    def attempt_answered(self, head: ResponseHead) -> None:
        """A response head arrived: call `relay` or `discard`."""
        raise NotImplementedError

    def attempt_failed(self, error: TunnelError, *, handed_over: bool) -> None:
        """The attempt ended without a response head; `handed_over`: the tunnel was given the whole request before."""
        raise NotImplementedError

    def body_begun(self) -> None:
        """The first piece of the body is about to be relayed."""
        raise NotImplementedError

    def response_ended(self, failure: str | None) -> None:
        """The relayed response has ended; `failure` is the reason if it was broken off, None if it is complete."""
        raise NotImplementedError


class AttemptState(IntEnum):
    """The state of an attempt; it only increases."""

    OPENING = 0
    """The attempt waits for a stream."""

    AWAITING_HEAD = 1
    """The request is being sent; the response head has not arrived."""

    RELAYING = 2
    """The response head has arrived; the body is relayed to the client, unless the owner discards the response."""

    RESPONSE_ENDED = 3
    """The response is complete; the request body is still being sent."""

    OVER = 4
    """The attempt has ended; no callback follows."""


# Bound once: looking a member up in its enum takes as long as ten such comparisons (Python 3.11), and these run for every chunk.
_OPENING: Final = AttemptState.OPENING
_RELAYING: Final = AttemptState.RELAYING
_OVER: Final = AttemptState.OVER
_RESPONSE_ENDED: Final = AttemptState.RESPONSE_ENDED
_AWAITING_HEAD: Final = AttemptState.AWAITING_HEAD


class Attempt(ExchangeSink):
    """One attempt; implements `ExchangeSink` and `AwaitsHead`."""

    __slots__ = (
        "_body",
        "_body_begun",
        "_budget_s",
        "_deadlines",
        "_exchange",
        "_handed_over",
        "_idle_s",
        "_idle_timer",
        "_last_byte_at",
        "_loop",
        "_opening",
        "_owner",
        "_paused",
        "_replay",
        "_response",
        "_tunnels",
        "_upload",
        "_upload_failure",
        "_upload_timer",
        "deadline_at",
        "state",
    )

    def __init__(
        self,
        owner: AttemptCallbacks,
        tunnels: TunnelSet,
        body: RequestBody,
        replay: ReplayBuffer,
        loop: asyncio.AbstractEventLoop,
        deadlines: HeadDeadlines,
        *,
        idle_timeout_ms: int,
    ) -> None:
        self._owner = owner
        self._tunnels = tunnels
        self._body = body
        self._replay = replay
        self._loop = loop
        self._deadlines = deadlines
        self._idle_s = idle_timeout_ms / 1000
        self._exchange: Exchange | None = None
        self._handed_over = False
        self._opening: asyncio.Task[None] | None = None
        self._upload: Upload | None = None
        self._response: ResponseWriter | None = None
        self._idle_timer: asyncio.TimerHandle | None = None
        self._upload_timer: asyncio.TimerHandle | None = None
        self._upload_failure: str | None = None
        self.deadline_at = 0.0
        """When the response head is due, in seconds of the event loop's clock; of `HeadDeadlines`."""
        self._budget_s = 0.0
        self._last_byte_at = 0.0
        self._paused = False
        self._body_begun = False
        self.state = _OPENING

    def _advance(self, state: AttemptState) -> None:
        if state > self.state:
            self.state = state

    # --- from the request ------------------------------------------------------------------------------------------

    def start(self, head: RequestHead) -> None:
        """Open a stream now, or as soon as the worker grants one; from now on the response head is waited for."""
        self._deadlines.add(self)
        end = self._nothing_to_upload()
        try:
            exchange = self._tunnels.try_open(head, self, end=end)
        except TunnelError as error:
            # In a later turn of the event loop: attempts that fail one after the other would make a deep call stack.
            self._loop.call_soon(self.on_failed, error)
            return
        if exchange is None:
            self._opening = self._loop.create_task(self._open(head, end=end))
            self._opening.add_done_callback(self._opening_over)
        else:
            self._opened(exchange, end=end)

    def relay(self, response: ResponseWriter) -> None:
        """Relay the body to `response`, whose head has been sent."""
        self._response = response
        if self._idle_s:
            self._last_byte_at = self._loop.time()
            self._idle_timer = self._loop.call_later(self._idle_s, self._check_idle)

    def discard(self) -> None:
        """Drop the response; the exchange ends in both directions, and no callback follows."""
        self._end()
        if self._exchange is not None:
            self._exchange.cancel()

    def pause(self) -> None:
        """The client is slow: stop granting credit, so the worker can send only what the stream window still allows."""
        self._paused = True
        if self._exchange is not None:
            self._exchange.pause()

    def resume(self) -> None:
        """The client reads again: go on granting credit."""
        self._paused = False
        if self._exchange is not None:
            self._exchange.resume()

    # --- ExchangeSink ----------------------------------------------------------------------------------------------

    def on_head(self, head: ResponseHead) -> None:
        """The response head. If it is no success, the rest of the upload is abandoned."""
        self._advance(_RELAYING)
        self._deadlines.discard(self)
        if self._upload is not None and not 200 <= head.status < 300:
            self._upload.abort()
        self._owner.attempt_answered(head)

    def on_body(self, data: bytes) -> None:
        """Write one chunk to the client."""
        if self.state is _OVER:
            return
        response = self._response
        if response is None:
            self._without_head()
            return
        if self._idle_s:
            self._last_byte_at = self._loop.time()
        if not self._body_begun:
            self._body_begun = True
            self._owner.body_begun()
        if not response.write(data):
            # The declared length is reached: further bytes are not part of the response.
            self.discard()
            response.end()
            self._owner.response_ended(None)

    def on_end(self) -> None:
        """The response is complete; an upload that still runs gets the rest of the deadline."""
        if self.state is _OVER:
            return
        if self._response is None:
            self._without_head()
            return
        if self._upload is None or self._upload.done:
            self._finish()
        else:
            self._advance(_RESPONSE_ENDED)
            if self._idle_timer is not None:
                self._idle_timer.cancel()
                self._idle_timer = None
            self._upload_timer = self._loop.call_later(self._budget_s, self._upload_late)

    def on_failed(self, error: TunnelError) -> None:
        """The exchange failed: before the head the attempt failed, after it the response is broken off."""
        if self.state is _OVER:
            return
        awaiting_head = self.state < _RELAYING
        self._end()
        if not awaiting_head:
            self._break_off(error.reason)
        else:
            self._owner.attempt_failed(error, handed_over=self._handed_over)

    def on_upload_writable(self) -> None:
        """The exchange accepts more of the body."""
        if self._upload is not None:
            self._upload.writable()

    def on_upload_stopped(self) -> None:
        """The worker sent STOP_SENDING: stop the upload."""
        if self._upload is not None:
            self._upload.stopped()

    # -----------------------------------------------------------------------------------------------------------------

    def _nothing_to_upload(self) -> bool:
        if self._replay.touched:
            return not self._replay.chunks
        return self._body.empty

    async def _open(self, head: RequestHead, *, end: bool) -> None:
        try:
            exchange = await self._tunnels.open(head, self, end=end)
        except TunnelError as error:
            self._opening = None
            self.on_failed(error)
            return
        self._opening = None
        self._opened(exchange, end=end)

    def _opening_over(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None:
            _log.error("waiting for a stream ended unexpectedly", exc_info=task.exception())
            self._opening = None
            self.on_failed(TunnelError("no stream"))

    def _opened(self, exchange: Exchange, *, end: bool) -> None:
        if self.state is _OVER:
            exchange.cancel()
            return
        self._advance(_AWAITING_HEAD)
        self._exchange = exchange
        if self._paused:
            exchange.pause()
        if end:
            self._handed_over = True
            self._replay.touch()
            self._replay.complete()
            return
        if self._body.complete and not self._replay.touched:
            self._send_whole(exchange)
            return
        self._budget_s = self.deadline_at - self._loop.time()
        self._upload = Upload(self._body, self._replay, exchange, self._upload_over)
        self._upload.start()

    def _send_whole(self, exchange: Exchange) -> None:
        """Send a body that has arrived completely (so it is small) without an `Upload`."""
        replay = self._replay
        replay.touch()
        for data in self._body.take():
            replay.add(data)
            exchange.send_body(data)
        replay.complete()
        self._handed_over = True
        exchange.end_body()

    def _upload_over(self, failure: str | None) -> None:
        if self.state is _OVER or self._exchange is None or self._upload is None:
            return
        if failure is not None:
            label = "client" if self._upload.from_client else "copy"
            _log.error("failed to send request body", error=failure, upload_label=label)
        self._handed_over = failure is None
        if failure is not None and self.state < _RELAYING:
            self.discard()
            self._owner.attempt_failed(TunnelError(failure), handed_over=False)
            return
        if failure is not None:
            # The response is still relayed, but it does not end cleanly.
            self._upload_failure = failure
            self._exchange.abort_upload()
        if self.state is _RESPONSE_ENDED:
            self._finish()

    def head_late(self) -> None:
        """See `AwaitsHead`: give the attempt up."""
        accepted = self._exchange is not None and self._exchange.upload_acknowledged()
        self.discard()
        self._owner.attempt_failed(TunnelError(TIMED_OUT, accepted=accepted), handed_over=self._handed_over)

    def _upload_late(self) -> None:
        self._upload_timer = None
        _log.warning(
            "request body send task did not finish before response EOF timeout",
            task="request body",
            timeout_ms=round(self._budget_s * 1000),
        )
        self._finish()

    def _check_idle(self) -> None:
        at = self._last_byte_at + self._idle_s
        if self._paused:
            at = self._loop.time() + self._idle_s  # the client does not read: the worker is not idle
        if at > self._loop.time():
            self._idle_timer = self._loop.call_at(at, self._check_idle)
            return
        self._idle_timer = None
        self.discard()
        self._break_off("no byte of the response for too long")

    def _without_head(self) -> None:
        """A part of the response came before its head was passed on. Framings rule that out; the client is answered anyway."""
        _log.error("response without a head", state=self.state.name)
        self.discard()
        self._owner.attempt_failed(TunnelError("response without a head"), handed_over=self._handed_over)

    def _finish(self) -> None:
        response = self._response
        if self._upload is not None:
            self._upload.abort()
        self._end()
        if self._upload_failure is not None:
            self._break_off(self._upload_failure)
            return
        if response is not None:  # pragma: no branch - the response has ended, so it was begun
            response.end()
        self._owner.response_ended(None)

    def _break_off(self, reason: str) -> None:
        if self._response is not None:  # pragma: no branch - there was a head, and its owner took it
            self._response.break_off()
        self._owner.response_ended(reason)

    def _end(self) -> None:
        if self.state < _RELAYING:
            self._deadlines.discard(self)
        self._advance(_OVER)
        if self._idle_timer is not None:
            self._idle_timer.cancel()
            self._idle_timer = None
        if self._upload_timer is not None:
            self._upload_timer.cancel()
            self._upload_timer = None
        upload, self._upload = self._upload, None  # also cuts the reference cycle between the two
        if upload is not None:
            upload.cancel()
        opening, self._opening = self._opening, None
        if opening is not None:
            opening.cancel()
