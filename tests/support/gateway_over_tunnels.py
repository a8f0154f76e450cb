"""One model of a running router, its workers on real tunnels played by the test, and its clients of raw bytes."""

import asyncio
import itertools

from support.http_client import HttpClient, post
from support.registered_worker import RegisteredWorker
from support.scripted_worker import ScriptedWorker

BUSY = {"queued_input_size": 9_000}
"""Figures of a worker that is only chosen once no other is left."""
DEADLINE_S = 8.0
_numbers = itertools.count()


class CaseOverTunnels:
    """Ids and the model are its own, so that many cases share a router. Workers answer nothing by themselves."""

    def __init__(self, system):
        self.system = system
        self.model = f"model-{next(_numbers)}"
        self.workers = []
        self.clients = []

    async def worker(self, name="a", *, cluster="", streams=None, stats=None):
        """A routable worker; returns its end of the tunnel."""
        worker = RegisteredWorker(self.system, self.id(name), cluster_id=cluster and self.id(cluster))
        self.workers.append(worker)
        if self.system.reverse:
            await worker.start(self.model, streams=streams, **(stats or {}))
            await worker.stop_serving()
        else:
            worker.tunnel = await ScriptedWorker.listen()
            worker.url = f"quic://127.0.0.1:{worker.tunnel.port}"
            await worker.advertise(self.model, **(stats or {})).update()
        return worker.tunnel

    async def pair(self, *, same_cluster=True):
        """The worker that is asked first, and the one that is asked next."""
        first = await self.worker("a", cluster="c" if same_cluster else "")
        return first, await self.worker("b", cluster="c" if same_cluster else "", stats={} if same_cluster else BUSY)

    def id(self, name):
        return f"{self.model}-{name}"

    def post(self, *args, **headers):
        return post(*args, model=self.model, **headers)

    def unfinished(self, length=100, **headers):
        """A request whose body is announced and begun, not finished."""
        return self.post(body=b"", content_length=str(length), **headers) + b"begun"

    async def client(self):
        host, _, port = self.system.ports.http.rpartition(":")
        client = HttpClient(*await asyncio.open_connection(host, int(port), limit=1 << 12))
        self.clients.append(client)
        return client

    async def send(self, data):
        client = await self.client()
        client.send(data)
        return client

    async def ask(self, data):
        return await (await self.send(data)).answer()

    async def count(self, family, *labels):
        """The sum over the series of this model whose labels contain all of `labels`."""
        samples = await asyncio.to_thread(self.system.metrics)
        wanted = (f'model="{self.model}"', *labels)
        return sum(
            value
            for name, value in samples.items()
            if name.startswith(f"stargate_{family}{{") and all(label in name for label in wanted)
        )

    async def counts(self, number, family, *labels):
        """Wait until it has become `number`."""
        async with asyncio.timeout(DEADLINE_S):
            while await self.count(family, *labels) != number:  # noqa: ASYNC110 - another process counts
                await asyncio.sleep(0.01)

    async def close(self):
        for client in self.clients:
            client.leave()
        for worker in self.workers:
            await worker.stop()
