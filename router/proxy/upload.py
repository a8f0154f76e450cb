"""Sends the request body into one exchange: from the client for the first attempt, from the replay copy for later ones."""

from collections.abc import Callable

from router.http1.request import RequestBody
from router.ports.tunnels import Exchange
from router.proxy.replay import ReplayBuffer


class Upload:
    """One upload. `on_over` is called once if it ends by itself: None = complete, else the reason of the failure."""

    __slots__ = ("_attached", "_body", "_exchange", "_on_over", "_pending", "_replay", "done", "from_client")

    def __init__(
        self, body: RequestBody, replay: ReplayBuffer, exchange: Exchange, on_over: Callable[[str | None], None]
    ) -> None:
        self._body = body
        self._replay = replay
        self._exchange = exchange
        self._on_over = on_over
        self._pending: list[bytes] = []
        self._attached = False
        self.from_client = not replay.touched
        """Whether the body comes from the client and not from the copy."""
        self.done = False
        """Whether the upload has ended."""

    def start(self) -> None:
        """Send the bytes that have arrived; the rest follows in callbacks."""
        if self.from_client:
            self._replay.touch()
            self._attached = True
            self._body.attach(self)
        else:
            self._pending = list(reversed(self._replay.chunks))
            self._send_copy()

    def writable(self) -> None:
        """The exchange accepts data again."""
        if self._attached:
            self._body.resume()
        elif not self.done:
            self._send_copy()

    def stopped(self) -> None:
        """The worker does not take the rest; bytes that the client still sends are copied for another attempt."""
        self.done = True
        self._pending.clear()
        if self._attached:
            self._body.resume()

    def abort(self) -> None:
        """Abandon the rest of the body: the response of the worker makes it useless."""
        if not self.done:
            self._exchange.abort_upload()
        self.cancel()

    def cancel(self) -> None:
        """End the upload; an incomplete body cannot be replayed."""
        self.done = True
        self._pending.clear()
        if self._attached:
            self._attached = False
            self._body.detach()
            self._replay.lose()

    # --- BodyConsumer ----------------------------------------------------------------------------------------------

    def on_body(self, data: bytes) -> None:
        """Bytes of the body arrived from the client."""
        self._replay.add(data)
        if not self.done and not self._exchange.send_body(data):
            self._body.pause()

    def on_body_end(self) -> None:
        """The client has sent the whole body."""
        self._attached = False
        self._replay.complete()
        self._complete()

    def on_body_broken(self, reason: str) -> None:
        """The client's framing of the body is invalid: the upload fails."""
        self._attached = False
        self._replay.lose()
        if not self.done:
            self.done = True
            self._on_over(f"request body: {reason}")

    def _send_copy(self) -> None:
        while self._pending:
            if not self._exchange.send_body(self._pending.pop()):
                return
        self._complete()

    def _complete(self) -> None:
        if not self.done:
            self.done = True
            self._exchange.end_body()
            self._on_over(None)
