"""What a registration has of its gRPC call."""

from collections.abc import Callable
from typing import Protocol


class ReportStream(Protocol):
    """Reports in, acks out; see `router.grpc.call.Call`."""

    @property
    def writable(self) -> bool:
        """Whether the worker has taken everything that was written."""

    def receive(self, on_message: Callable[[bytes], None], on_closed: Callable[[], None]) -> None:
        """Have `on_message` called with each report, and `on_closed` when none follows."""

    def write_now(self, message: bytes) -> None:
        """Send an ack, or have it wait."""

    async def write(self, message: bytes) -> None:
        """Send an ack; waits while too many wait."""
