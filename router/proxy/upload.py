"""The request body on its way into one exchange: from the client the first time, from the replay copy afterwards."""

from collections.abc import Callable

from router.http1.request import RequestBody
from router.ports.tunnels import Exchange
from router.proxy.replay import ReplayBuffer


class Upload:
    """Implements `BodyConsumer`. `on_over` is called once if it ends by itself: None = complete, else why it failed."""

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
        """Not from the copy."""
        self.done = False
        """Nothing more is going to be sent."""

    def start(self) -> None:
        """Send what there is and go on by callbacks."""
        if self.from_client:
            self._replay.touch()
            self._attached = True
            self._body.attach(self)
        else:
            self._pending = list(reversed(self._replay.chunks))
            self._send_copy()

    def writable(self) -> None:
        """The exchange takes data again."""
        if self._attached:
            self._body.resume()
        elif not self.done:
            self._send_copy()

    def stopped(self) -> None:
        """The worker does not take the rest; what the client still sends is kept for another attempt."""
        self.done = True
        self._pending.clear()
        if self._attached:
            self._body.resume()

    def abort(self) -> None:
        """The worker's answer makes the rest of the body pointless."""
        if not self.done:
            self._exchange.abort_upload()
        self.cancel()

    def cancel(self) -> None:
        """Nobody takes the rest any more, and a part is of no use for another attempt."""
        self.done = True
        self._pending.clear()
        if self._attached:
            self._attached = False
            self._body.detach()
            self._replay.lose()

    # --- BodyConsumer ----------------------------------------------------------------------------------------------

    def on_body(self, data: bytes) -> None:
        """Bytes of the client."""
        self._replay.add(data)
        if not self.done and not self._exchange.send_body(data):
            self._body.pause()

    def on_body_end(self) -> None:
        """The client's body is complete."""
        self._attached = False
        self._replay.complete()
        self._complete()

    def on_body_broken(self, reason: str) -> None:
        """The client's body breaks off."""
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
