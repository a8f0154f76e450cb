"""The request body on its way into one exchange: from the client the first time, from the replay copy afterwards."""

from collections.abc import Callable

from router.gateway.replay import ReplayBuffer
from router.gateway.request import RequestBody
from router.registry.tunnel import Exchange


class Upload:
    """Implements `BodyConsumer`. `on_failed` is called at most once, with a reason."""

    __slots__ = ("_body", "_exchange", "_live", "_on_failed", "_pending", "_replay", "done")

    def __init__(
        self, body: RequestBody, replay: ReplayBuffer, exchange: Exchange, on_failed: Callable[[str], None]
    ) -> None:
        self._body = body
        self._replay = replay
        self._exchange = exchange
        self._on_failed = on_failed
        self._live = not replay.touched
        self._pending: list[bytes] = []
        self.done = False
        """Nothing more is going to be sent."""

    def start(self) -> None:
        """Send what there is and go on by callbacks."""
        if self._live:
            self._replay.touch()
            self._body.attach(self)
        else:
            self._pending = list(reversed(self._replay.chunks))
            self._send_copy()

    def writable(self) -> None:
        """The exchange takes data again."""
        if self.done:
            return
        if self._live:
            self._body.resume()
        else:
            self._send_copy()

    def abort(self) -> None:
        """The worker's answer makes the rest of the body pointless."""
        if not self.done:
            self._stop()
            self._exchange.abort_upload()

    def stopped(self) -> None:
        """The worker does not take the rest; what still comes is dropped, but kept for another attempt."""
        if self._live:
            self._body.resume()
        else:
            self.done = True
            self._pending.clear()

    def cancel(self) -> None:
        """The exchange is over in both directions."""
        if not self.done:
            self._stop()

    # --- BodyConsumer ----------------------------------------------------------------------------------------------

    def on_body(self, data: bytes) -> None:
        """Bytes of the client."""
        self._replay.add(data)
        if not self._exchange.send_body(data):
            self._body.pause()

    def on_body_end(self) -> None:
        """The client's body is complete."""
        self.done = True
        self._replay.complete()
        self._exchange.end_body()

    def on_body_broken(self, reason: str) -> None:
        """The client's body breaks off."""
        self.done = True
        self._replay.lose()
        self._on_failed(f"request body: {reason}")

    def _send_copy(self) -> None:
        while self._pending:
            if not self._exchange.send_body(self._pending.pop()):
                return
        self.done = True
        self._exchange.end_body()

    def _stop(self) -> None:
        self.done = True
        self._pending.clear()
        if self._live:
            self._body.detach()
            self._replay.lose()
