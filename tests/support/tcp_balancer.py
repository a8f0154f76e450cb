"""A balancer of TCP connections as a Service has it: it polls `/readyz`, and takes another router only when a connect is refused."""

import asyncio
import itertools
import threading
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

Address = tuple[str, int]
Result = TypeVar("Result")

_POLL_S = 0.2
_PROBE_TIMEOUT_S = 2.0
_READ_BYTES = 65536


class TcpBalancer:
    """Passes each connection to the next router whose last probe was 200. What happens on it after the connect is not repaired."""

    def __init__(self, routers: Sequence[Address], poll_s: float = _POLL_S) -> None:
        self._routers = list(routers)
        self._poll_s = poll_s
        self._turn = itertools.count()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._server: asyncio.Server | None = None
        self.ready: frozenset[Address] = frozenset()
        """The routers whose last probe was 200."""
        self.refused = 0
        """Connects that were refused, after which another router was tried."""
        self.unserved = 0
        """Connections for which there was no router."""
        self.port = 0

    async def start(self) -> None:
        """Listen on a free port of 127.0.0.1, and probe from now on."""
        self._tasks = {asyncio.create_task(self._poll(router)) for router in self._routers}
        self._server = await asyncio.start_server(self._pass, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """End everything, open connections too."""
        if self._server is not None:
            self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _poll(self, router: Address) -> None:
        while True:
            ready = await _probe(router)
            self.ready = self.ready | {router} if ready else self.ready - {router}
            await asyncio.sleep(self._poll_s)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            upstream = await self._connect()
            if upstream is None:
                self.unserved += 1
                return
            try:
                # The end of either direction by the router ends both: it closes only what it has answered.
                down = asyncio.create_task(_copy(upstream[0], writer))
                up = asyncio.create_task(_copy(reader, upstream[1]))
                try:
                    await asyncio.wait({down, up}, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    down.cancel()
                    up.cancel()
                    await asyncio.gather(down, up, return_exceptions=True)
            finally:
                upstream[1].close()
        finally:
            writer.close()
            self._tasks.discard(task)

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        ready = [router for router in self._routers if router in self.ready]
        first = next(self._turn)
        for index in range(len(ready)):
            try:
                return await asyncio.open_connection(*ready[(first + index) % len(ready)])
            except ConnectionRefusedError:
                self.refused += 1
        return None


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(_READ_BYTES):
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        return  # the client sees the end of its connection, and judges its answer


async def _probe(router: Address) -> bool:
    try:
        async with asyncio.timeout(_PROBE_TIMEOUT_S):
            reader, writer = await asyncio.open_connection(*router)
            try:
                writer.write(b"GET /readyz HTTP/1.1\r\nhost: probe\r\nconnection: close\r\n\r\n")
                return (await reader.readline()).startswith(b"HTTP/1.1 200 ")
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return False


class BalancerInThread:
    """A balancer on an event loop of its own."""

    def __init__(self, routers: Sequence[Address]) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.balancer = TcpBalancer(routers)
        self._call(self.balancer.start())

    def _call(self, work: Coroutine[Any, Any, Result]) -> Result:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    def stop(self) -> None:
        """End the balancer and its thread."""
        self._call(self.balancer.stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()
