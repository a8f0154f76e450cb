"""A client connection without a socket: bytes in by `feed`, bytes out in `out`, requests answered by a function of the test."""

import asyncio
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import h11

from router.http1.connection import ClientConnection, ConnectionCallbacks
from support.package_settings import connection_timeouts


class Transport:
    """What a connection needs of a transport; remembers what was written and how it was closed."""

    def __init__(self) -> None:
        self.out = b""
        self.closed = False
        self.reading = True

    def write(self, data: bytes) -> None:
        assert not self.closed
        assert type(data) is bytes
        self.out += data

    def writelines(self, pieces: Iterable[bytes]) -> None:
        self.write(b"".join(pieces))

    def write_eof(self) -> None: ...

    def can_write_eof(self) -> bool:
        return True

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    abort = close

    def pause_reading(self) -> None:
        assert self.reading
        self.reading = False

    def resume_reading(self) -> None:
        assert not self.reading
        self.reading = True

    def get_write_buffer_size(self) -> int:
        return 0

    def get_extra_info(self, name: str) -> object:
        return None


class Collected:
    """A request with its body, as the handler saw it; `broken` if the body never became complete."""

    def __init__(self, request: Any, response: Any, on_complete: "Callable[[Collected], object]") -> None:
        self.request = request
        self.response = response
        self.body = b""
        self.complete = False
        self.broken = False
        self._on_complete = on_complete

    def on_body(self, data: bytes) -> None:
        assert data
        self.body += data

    def on_body_end(self) -> None:
        self.complete = True
        self._on_complete(self)

    def on_body_broken(self, reason: str) -> None:
        self.broken = True
        self.response.send(502, [])


class ClientConnectionOwner(ConnectionCallbacks):
    """The owner of one connection: collects every request's body, then answers by `answer(collected)`."""

    def __init__(self, answer: Callable[[Collected], object]) -> None:
        super().__init__()
        self.requests: list[Collected] = []
        self._answer = answer
        self._dirty: list[ClientConnection] = []
        self.transport = Transport()
        self.connection = ClientConnection(
            self, asyncio.get_running_loop().time, connection_timeouts(), close_unread=True
        )
        self.connection.connection_made(self.transport)  # type: ignore[arg-type]  # what it needs of one

    def handle(self, request: Any, response: Any) -> None:
        self.requests.append(Collected(request, response, self._answer))
        request.body.attach(self.requests[-1])

    def connection_opened(self, connection: ClientConnection) -> None: ...

    def connection_closed(self, connection: ClientConnection) -> None: ...

    def refuse(self, request: Any, response: Any, status: int, reason: str) -> None:
        response.send(status, [])

    def date(self) -> bytes:
        return b"Mon, 01 Jan 2024 00:00:00 GMT"

    def flush_later(self, connection: ClientConnection) -> None:
        self._dirty.append(connection)

    async def feed(self, data: bytes, cuts: Iterable[int] = ()) -> None:
        """Deliver `data`, cut at `cuts`, with a turn of the loop after each piece."""
        edges = [0, *sorted(cut for cut in cuts if cut < len(data)), len(data)]
        for start, end in itertools.pairwise(edges):
            if self.transport.closed:
                return
            if end > start:
                self.connection.data_received(data[start:end])
            await self.settle()

    async def settle(self) -> None:
        """Let the connection do what it has put off."""
        for _ in range(200):
            await asyncio.sleep(0)
            dirty, self._dirty = self._dirty, []
            for connection in dirty:
                connection.flush()
            if not dirty and not self.connection._pipeline.waiting:
                return

    def end(self) -> None:
        self.connection.connection_lost(None)


def responses(out: bytes, methods: Sequence[str] = ()) -> list[tuple[int, list[tuple[bytes, bytes]], bytes]]:
    """What an independent parser makes of the bytes: (status, headers, body) of each response; raises on anything amiss."""
    found: list[tuple[int, list[tuple[bytes, bytes]], bytes]] = []
    rest = out
    while rest:
        client = h11.Connection(h11.CLIENT)
        method = methods[len(found)] if len(found) < len(methods) else "GET"
        client.send(h11.Request(method=method, target="/", headers=[("host", "x")]))
        client.send(h11.EndOfMessage())
        client.receive_data(rest)
        head: h11.Response | None = None
        body = b""
        while True:
            event = client.next_event()
            if isinstance(event, h11.Response):
                head = event
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                break
            elif event is h11.NEED_DATA:
                client.receive_data(b"")
        assert head is not None
        found.append((head.status_code, list(head.headers), body))
        rest = client.trailing_data[0]
    return found
