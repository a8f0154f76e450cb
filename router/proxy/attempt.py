"""One try of one request on one inference server: open a stream, send the head, upload beside waiting for the answer.

From the first byte of the stream to the response head one deadline applies; after the head there is none (but an optional
idle limit). Everything is a callback from the exchange; only waiting for stream credit needs a task. See docs/proxy.md,
"Attempts".
"""

import asyncio
from enum import IntEnum
from typing import Protocol

import structlog

from router.http1.request import RequestBody
from router.http1.response import Response
from router.ports.tunnels import Exchange, TunnelError, TunnelSet
from router.proxy.replay import ReplayBuffer
from router.proxy.upload import Upload
from tunnel_protocol.head import RequestHead, ResponseHead

_log = structlog.get_logger()

TIMED_OUT = "quic request timed out"


class AttemptCallbacks(Protocol):
    """The request an attempt is made for."""

    def attempt_answered(self, head: ResponseHead) -> None:
        """A response head arrived: call `relay` or `discard`."""

    def attempt_failed(self, error: TunnelError) -> None:
        """No response head will come."""

    def response_ended(self, failure: str | None) -> None:
        """The relayed response is over; `failure` tells why it was broken off."""


class AttemptState(IntEnum):
    """Where an attempt stands; it only advances."""

    OPENING = 0
    """A stream is being waited for."""

    AWAITING_HEAD = 1
    """The request is on its way; the head of the response is not there yet."""

    RELAYING = 2
    """The head has arrived; the body goes to the client, unless the owner discards the answer."""

    RESPONSE_ENDED = 3
    """The response is complete; the request body is still being sent."""

    OVER = 4
    """Nothing follows."""


class Attempt:
    """Implements the sink of its exchange."""

    __slots__ = (
        "_body",
        "_budget_s",
        "_deadline_at",
        "_exchange",
        "_head_timer",
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
        "state",
    )

    def __init__(
        self,
        owner: AttemptCallbacks,
        tunnels: TunnelSet,
        body: RequestBody,
        replay: ReplayBuffer,
        loop: asyncio.AbstractEventLoop,
        *,
        idle_timeout_ms: int,
    ) -> None:
        self._owner = owner
        self._tunnels = tunnels
        self._body = body
        self._replay = replay
        self._loop = loop
        self._idle_s = idle_timeout_ms / 1000
        self._exchange: Exchange | None = None
        self._opening: asyncio.Task[None] | None = None
        self._upload: Upload | None = None
        self._response: Response | None = None
        self._head_timer: asyncio.TimerHandle | None = None
        self._idle_timer: asyncio.TimerHandle | None = None
        self._upload_timer: asyncio.TimerHandle | None = None
        self._upload_failure: str | None = None
        self._deadline_at = 0.0
        self._budget_s = 0.0
        self._last_byte_at = 0.0
        self._paused = False
        self.state = AttemptState.OPENING

    def _advance(self, state: AttemptState) -> None:
        if state > self.state:
            self.state = state

    # --- from the request ------------------------------------------------------------------------------------------

    def start(self, head: RequestHead, timeout_s: float) -> None:
        """Open a stream now, or as soon as the worker allows one; all of it within `timeout_s`."""
        self._deadline_at = self._loop.time() + timeout_s
        self._head_timer = self._loop.call_at(self._deadline_at, self._head_late)
        end = self._nothing_to_upload()
        try:
            exchange = self._tunnels.try_open(head, self, end=end)
        except TunnelError as error:
            # In a turn of its own: attempts that fail one after the other must not become a deep stack.
            self._loop.call_soon(self.on_failed, error)
            return
        if exchange is None:
            self._opening = self._loop.create_task(self._open(head, end=end))
            self._opening.add_done_callback(self._opening_over)
        else:
            self._opened(exchange, end=end)

    def relay(self, response: Response) -> None:
        """Pass the body on to `response`, whose head has been sent."""
        self._response = response
        if self._idle_s:
            self._last_byte_at = self._loop.time()
            self._idle_timer = self._loop.call_later(self._idle_s, self._check_idle)

    def discard(self) -> None:
        """Drop the answer; the exchange ends in both directions, no callback follows."""
        self._end()
        if self._exchange is not None:
            self._exchange.cancel()

    def pause(self) -> None:
        """The client is slow: the worker may send no more than its window."""
        self._paused = True
        if self._exchange is not None:
            self._exchange.pause()

    def resume(self) -> None:
        """The client has caught up."""
        self._paused = False
        if self._exchange is not None:
            self._exchange.resume()

    # --- ExchangeSink ----------------------------------------------------------------------------------------------

    def on_head(self, head: ResponseHead) -> None:
        """The answer begins. One that is no success makes the rest of the upload pointless."""
        self._advance(AttemptState.RELAYING)
        if self._head_timer is not None:  # pragma: no branch - it runs until there is a head
            self._head_timer.cancel()
            self._head_timer = None
        if self._upload is not None and not 200 <= head.status < 300:
            self._upload.abort()
        self._owner.attempt_answered(head)

    def on_body(self, data: bytes) -> None:
        """One chunk, straight on to the client."""
        response = self._response
        if response is None or self.state is AttemptState.OVER:
            return
        if self._idle_s:
            self._last_byte_at = self._loop.time()
        if not response.write(data):
            # The declared length is used up: what follows is not the client's business.
            self.discard()
            response.end()
            self._owner.response_ended(None)

    def on_end(self) -> None:
        """The response is complete; an upload that still runs gets what was left of the deadline."""
        response = self._response
        if self.state is AttemptState.OVER or response is None:
            return
        if self._upload is None or self._upload.done:
            self._finish()
        else:
            self._advance(AttemptState.RESPONSE_ENDED)
            if self._idle_timer is not None:
                self._idle_timer.cancel()
                self._idle_timer = None
            self._upload_timer = self._loop.call_later(self._budget_s, self._upload_late)

    def on_failed(self, error: TunnelError) -> None:
        """The exchange broke."""
        if self.state is AttemptState.OVER:
            return
        awaiting_head = self.state < AttemptState.RELAYING
        self._end()
        if not awaiting_head:
            self._break_off(error.reason)
        else:
            self._owner.attempt_failed(error)

    def on_upload_writable(self) -> None:
        """The worker takes more of the body."""
        if self._upload is not None:
            self._upload.writable()

    def on_upload_stopped(self) -> None:
        """The worker wants no more of the body."""
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
        if self.state is AttemptState.OVER:
            exchange.cancel()
            return
        self._advance(AttemptState.AWAITING_HEAD)
        self._exchange = exchange
        if self._paused:
            exchange.pause()
        if end:
            self._replay.touch()
            self._replay.complete()
            return
        if self._body.complete and not self._replay.touched:
            self._send_whole(exchange)
            return
        self._budget_s = self._deadline_at - self._loop.time()
        self._upload = Upload(self._body, self._replay, exchange, self._upload_over)
        self._upload.start()

    def _send_whole(self, exchange: Exchange) -> None:
        """A body that has arrived already (so it is small) needs no upload beside the answer."""
        replay = self._replay
        replay.touch()
        for data in self._body.take():
            replay.add(data)
            exchange.send_body(data)
        replay.complete()
        exchange.end_body()

    def _upload_over(self, failure: str | None) -> None:
        if self.state is AttemptState.OVER or self._exchange is None or self._upload is None:
            return
        if failure is not None:
            label = "client" if self._upload.from_client else "copy"
            _log.error("failed to send request body", error=failure, upload_label=label)
        if failure is not None and self.state < AttemptState.RELAYING:
            self.discard()
            self._owner.attempt_failed(TunnelError(failure))
            return
        if failure is not None:
            # What the worker has to say is still passed on, but its end is no clean one.
            self._upload_failure = failure
            self._exchange.abort_upload()
        if self.state is AttemptState.RESPONSE_ENDED:
            self._finish()

    def _head_late(self) -> None:
        self._head_timer = None
        accepted = self._exchange is not None and self._exchange.upload_acknowledged()
        self.discard()
        self._owner.attempt_failed(TunnelError(TIMED_OUT, accepted=accepted))

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
            at = self._loop.time() + self._idle_s  # it is the client that is idle
        if at > self._loop.time():
            self._idle_timer = self._loop.call_at(at, self._check_idle)
            return
        self._idle_timer = None
        self.discard()
        self._break_off("no byte of the response for too long")

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
        self._advance(AttemptState.OVER)
        for timer in (self._head_timer, self._idle_timer, self._upload_timer):
            if timer is not None:
                timer.cancel()
        self._head_timer = self._idle_timer = self._upload_timer = None
        upload, self._upload = self._upload, None  # also cuts the reference cycle between the two
        if upload is not None:
            upload.cancel()
        opening, self._opening = self._opening, None
        if opening is not None:
            opening.cancel()
