"""Viewers of the live page as programs: each takes the events of one stream and drops them."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

_READ_BYTES = 1 << 18


class _Viewer(asyncio.Protocol):
    """One stream."""

    def __init__(self, count: Callable[[int], None]) -> None:
        self._count = count

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask for the events."""
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - narrows the type
        transport.write(b"GET /api/v1/events HTTP/1.1\r\nhost: localhost\r\naccept-encoding: gzip\r\n\r\n")

    def data_received(self, data: bytes) -> None:
        """Count it."""
        self._count(len(data))


@asynccontextmanager
async def watch(address: tuple[str, int], viewers: int) -> AsyncIterator[Callable[[], int]]:
    """That many viewers at the operators' port `address`; gives a function that returns the bytes received so far."""
    received = 0

    def count(size: int) -> None:
        nonlocal received
        received += size

    loop = asyncio.get_running_loop()
    opened = [await loop.create_connection(lambda: _Viewer(count), *address) for _ in range(viewers)]
    try:
        yield lambda: received
    finally:
        for transport, _ in opened:
            transport.close()
