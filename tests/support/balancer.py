"""A balancer of TCP connections as a Service makes one: it asks `/readyz` of each router, and retries only refused connects."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from threading import Thread

POLL_S = 0.05
Address = tuple[str, int]


class Balancer:
    """Runs on a thread of its own until `stop`. `port` is where clients connect."""

    def __init__(self, routers: Sequence[Address]) -> None:
        self.port = 0
        self.ready: list[Address] = []
        self._routers = routers
        self._turn = 0
        self._loop = asyncio.new_event_loop()
        self._thread = Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._tasks: set[asyncio.Task[None]] = set()
        self._relays: set[asyncio.Task[None]] = set()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(5)

    def stop(self) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _start(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, backlog=1_000)
        self.port = self._server.sockets[0].getsockname()[1]
        self._tasks = {asyncio.create_task(self._poll(address)) for address in self._routers}

    async def _stop(self) -> None:
        self._server.close()
        for task in [*self._tasks, *self._relays]:
            task.cancel()
        await asyncio.gather(*self._tasks, *self._relays, return_exceptions=True)

    async def _poll(self, address: Address) -> None:
        while True:
            ready = await _is_ready(address)
            if ready != (address in self.ready):
                self.ready = [
                    one for one in self._routers if (one == address and ready) or (one != address and one in self.ready)
                ]
            await asyncio.sleep(POLL_S)

    def _accept(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._relay(client, to_client))
        self._relays.add(task)
        task.add_done_callback(self._relays.discard)

    async def _relay(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        try:
            for _ in self._routers:
                candidates = self.ready
                if not candidates:
                    return
                self._turn += 1
                try:
                    router, to_router = await asyncio.open_connection(*candidates[self._turn % len(candidates)])
                except ConnectionRefusedError:
                    continue
                try:
                    await asyncio.gather(_copy(client, to_router), _copy(router, to_client))
                finally:
                    await _close(to_router)
                return
        finally:
            await _close(to_client)


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Copy to the end, which is passed on; a reset is passed on as a reset."""
    try:
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
        writer.write_eof()
    except OSError:
        writer.transport.abort()


async def _is_ready(address: Address) -> bool:
    try:
        async with asyncio.timeout(1):
            reader, writer = await asyncio.open_connection(*address)
            writer.write(b"GET /readyz HTTP/1.1\r\nhost: router\r\nconnection: close\r\n\r\n")
            try:
                return b" 200 " in await reader.readline()
            finally:
                await _close(writer)
    except (OSError, TimeoutError):
        return False
