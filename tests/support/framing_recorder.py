"""A sink for either role of a framing that writes down what it is told and insists on the order."""

from tunnel_protocol.head import RequestHead, ResponseHead


class FramingRecorder:
    def __init__(self) -> None:
        self.head: RequestHead | ResponseHead | None = None
        self.pieces: list[bytes] = []
        self.ended = False

    def on_head(self, head: RequestHead | ResponseHead) -> None:
        assert self.head is None
        self.head = head

    def on_body(self, data: bytes) -> None:
        assert self.head is not None
        assert not self.ended
        assert data
        self.pieces.append(data)

    def on_end(self) -> None:
        assert self.head is not None
        assert not self.ended
        self.ended = True
