"""One model, its workers played by the test, and its clients of raw bytes: the same cases on a gateway in memory and on a running
router whose workers come through real tunnels.
"""

import asyncio
import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from llm_request_router.testing import System
from support.gateway_in_memory import GatewayInMemory, PlayedExchange, PlayedWorker
from support.http_client import HttpAnswer, HttpClient, post
from support.registered_worker import RegisteredWorker
from support.scripted_worker import ScriptedWorker
from support.waiting import becomes, eventually
from tunnel_protocol.head import RequestHead

BUSY = {"queued_input_size": 9_000}
"""Figures of a worker that is only chosen once no other is left."""
_FLAGS = {
    "compat": "compat",
    "request_timeout_ms": "quic-request-timeout-ms",
    "require_retry_signal": "proxy-require-pylon-retry-signal",
}
_numbers = itertools.count()


class RequestAtWorker(Protocol):
    """A request as its worker sees it, and what the worker does about it."""

    @property
    def head(self) -> RequestHead: ...
    @property
    def body(self) -> bytes: ...
    @property
    def complete(self) -> bool: ...
    @property
    def reset(self) -> bool:
        """Whether the gateway has abandoned the upload."""

    @property
    def stopped(self) -> bool:
        """Whether the gateway wants no more of the answer."""

    @property
    def codes(self) -> Sequence[int]:
        """Error codes of both."""

    def header(self, name: str) -> str | None: ...
    async def until(self, condition: Callable[[Any], object]) -> None: ...
    def send_head(self, status: int = 200, **headers: object) -> None: ...
    def send_body(self, data: bytes) -> None: ...
    def end(self) -> None: ...
    def answer(self, status: int = 200, body: bytes = b"ok", **headers: object) -> None: ...
    def break_off(self) -> None: ...
    def stop_upload(self) -> None: ...


class WorkerOfCase(Protocol):
    @property
    def requests(self) -> Sequence[object]:
        """Those that no `next_request` has given."""

    async def next_request(self) -> RequestAtWorker: ...


class Case(ABC):
    """Ids and the model are its own, so that many cases share a router. Workers answer nothing by themselves."""

    def __init__(self) -> None:
        self.model = f"model-{next(_numbers)}"
        self.clients: list[HttpClient] = []

    @abstractmethod
    async def worker(
        self, name: str = "a", *, cluster: str = "", streams: int | None = None, stats: dict[str, Any] | None = None
    ) -> Any:
        """A routable worker; returns its end of the tunnel."""

    @abstractmethod
    async def _connect(self) -> HttpClient: ...

    @abstractmethod
    async def _samples(self) -> dict[str, float]: ...

    async def pair(self, *, same_cluster: bool = True) -> tuple[Any, Any]:
        """The worker that is asked first, and the one that is asked next."""
        first = await self.worker("a", cluster="c" if same_cluster else "")
        return first, await self.worker("b", cluster="c" if same_cluster else "", stats={} if same_cluster else BUSY)

    @abstractmethod
    def url(self, name: str) -> str:
        """What the router tells clients about where a worker is."""

    def id(self, name: str) -> str:
        return f"{self.model}-{name}"

    def post(self, *args: Any, **headers: Any) -> bytes:
        return post(*args, model=self.model, **headers)

    def unfinished(self, length: int = 100, **headers: Any) -> bytes:
        """A request whose body is announced and begun, not finished."""
        return self.post(body=b"", content_length=str(length), **headers) + b"begun"

    async def client(self) -> HttpClient:
        client = await self._connect()
        self.clients.append(client)
        return client

    async def send(self, data: bytes) -> HttpClient:
        client = await self.client()
        client.send(data)
        return client

    async def ask(self, data: bytes) -> HttpAnswer:
        return await (await self.send(data)).answer()

    async def count(self, family: str, *labels: str, worker: str | None = None) -> float:
        """The sum over the series of this model, or of one of its workers, whose labels contain all of `labels`."""
        whose = f'model="{self.model}"' if worker is None else f'inference_server_id="{self.id(worker)}"'
        return sum(
            value
            for name, value in (await self._samples()).items()
            if name.startswith(f"stargate_{family}{{") and all(label in name for label in (whose, *labels))
        )

    async def counts(self, number: float, family: str, *labels: str) -> None:
        """Wait until it has become `number`."""

        async def counted() -> bool:
            return await self.count(family, *labels) == number

        await becomes(counted, f"{family} is {number}")

    async def close(self) -> None:
        for client in self.clients:
            client.leave()


class RequestInMemory:
    """An exchange that the gateway began, as a request at its worker."""

    def __init__(self, exchange: PlayedExchange) -> None:
        self._exchange = exchange
        self.head = exchange.request
        self.header = exchange.header
        self.send_head, self.send_body, self.end = exchange.head, exchange.body, exchange.end
        self.answer, self.break_off = exchange.answer, exchange.fail
        self.stop_upload = exchange.sink.on_upload_stopped

    @property
    def body(self) -> bytes:
        return self._exchange.received

    @property
    def complete(self) -> bool:
        return self._exchange.ended

    @property
    def reset(self) -> bool:
        return self._exchange.upload_aborted or (self._exchange.cancelled and not self._exchange.ended)

    @property
    def stopped(self) -> bool:
        return self._exchange.cancelled

    @property
    def codes(self) -> list[int]:
        return [0] * (self.reset + self.stopped)

    async def until(self, condition: Callable[[Any], object]) -> None:
        await eventually(lambda: condition(self))


class WorkerInMemory:
    def __init__(self, worker: PlayedWorker) -> None:
        self.played = worker
        self._taken = 0

    @property
    def requests(self) -> list[PlayedExchange]:
        return self.played.exchanges[self._taken :]

    async def next_request(self) -> RequestInMemory:
        self._taken += 1
        return RequestInMemory(await self.played.next(self._taken - 1))


class CaseInMemory(Case):
    def __init__(self, gateway: GatewayInMemory, *, reverse: bool = True) -> None:
        super().__init__()
        self.gateway = gateway
        self.reverse = reverse

    async def worker(
        self, name: str = "a", *, cluster: str = "", streams: int | None = None, stats: dict[str, Any] | None = None
    ) -> WorkerInMemory:
        figures = {"last_mean_input_tps": 100.0, **(stats or {})}
        worker = self.gateway.worker(
            self.id(name), cluster=cluster and self.id(cluster), model=self.model, direct=not self.reverse, **figures
        )
        if streams is not None:
            worker.free = streams
        return WorkerInMemory(worker)

    def url(self, name: str) -> str:
        return f"http://engine-of-{self.id(name)}:8000"

    async def _connect(self) -> HttpClient:
        return await HttpClient.connect(self.gateway.port, limit=1 << 12)

    async def _samples(self) -> dict[str, float]:
        page = self.gateway.metrics.render(additional=True).decode()
        lines = (line.rpartition(" ") for line in page.splitlines() if not line.startswith("#"))
        return {name: float(value) for name, _, value in lines}


class CaseOverTunnels(Case):
    def __init__(self, system: System) -> None:
        super().__init__()
        self.system = system
        self.workers: list[RegisteredWorker] = []

    async def worker(
        self, name: str = "a", *, cluster: str = "", streams: int | None = None, stats: dict[str, Any] | None = None
    ) -> ScriptedWorker:
        worker = RegisteredWorker(self.system, self.id(name), cluster_id=cluster and self.id(cluster))
        self.workers.append(worker)
        if self.system.reverse:
            await worker.start(self.model, streams=streams, **(stats or {}))
            await worker.stop_serving()
        else:
            worker.tunnel = await ScriptedWorker.listen()
            worker.url = f"quic://127.0.0.1:{worker.tunnel.port}"
            await worker.advertise(self.model, **(stats or {})).update()
        assert worker.tunnel is not None
        return worker.tunnel

    def url(self, name: str) -> str:
        return next(worker.url for worker in self.workers if worker.worker_id == self.id(name))

    async def _connect(self) -> HttpClient:
        return await HttpClient.connect(int(self.system.ports.http.rpartition(":")[2]), limit=1 << 12)

    async def _samples(self) -> dict[str, float]:
        return await asyncio.to_thread(self.system.metrics)

    async def close(self) -> None:
        await super().close()
        for worker in self.workers:
            await worker.stop()


def options_of(**settings: object) -> list[str]:
    """Settings of the gateway as options of a command line."""
    options = []
    for name, value in settings.items():
        flag = _FLAGS.get(name, f"proxy-{name.replace('_', '-')}")
        options.append(f"--{flag}" if value is True else f"--{flag}={str(value).lower()}")
    return options
