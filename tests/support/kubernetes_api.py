"""A Kubernetes API server that lists and watches EndpointSlices of one namespace as the real one does.

It has a version counter, a history from which watches go on, bookmarks, pages, and the answers of trouble: 410 for versions
that were compacted away, connections that drop, refusals. Over TLS, with a token.
"""

import asyncio
import json
import ssl
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import Any, TypeVar

from aiohttp import web

from certs import make_self_signed

TOKEN = "a-token-that-no-log-may-show"  # noqa: S105 - of a server of tests
Result = TypeVar("Result")


class Watch:
    """A watch that is open."""

    def __init__(self, answer: web.StreamResponse, transport: asyncio.Transport) -> None:
        self._answer = answer
        self._transport = transport
        self.ended = asyncio.Event()

    async def send(self, kind: str, document: Any) -> None:
        with suppress(ConnectionError):
            await self._answer.write(json.dumps({"type": kind, "object": document}).encode() + b"\n")

    def drop(self) -> None:
        self._transport.abort()
        self.ended.set()


class FakeKubernetesApi:
    """The server. Methods are for the event loop on which it was started."""

    def __init__(self, folder: Path, *, namespace: str = "nvcf") -> None:
        """Certificate and token are written into `folder`."""
        self.ca_path, self.token_path, self._key_path = folder / "ca.crt", folder / "token", folder / "ca.key"
        identity = make_self_signed(["localhost"], ["127.0.0.1"])
        self.ca_path.write_bytes(identity.cert_pem)
        self._key_path.write_bytes(identity.key_pem)
        self.token = TOKEN
        self.token_path.write_text(f"{TOKEN}\n")
        self.requests: list[tuple[float, dict[str, str]]] = []
        """Time and query of every request."""
        self.refusal: Callable[[dict[str, str]], int | None] = lambda _query: None
        """The status with which a request is refused; None for an ordinary answer."""
        self.body: bytes | None = None
        """What every list and watch is answered with, instead of what is true."""
        self.opened = 0
        """Watches that were opened."""
        self.url = ""
        self._namespace = namespace
        self._version = 100
        self._compacted = 0
        self._objects: dict[str, dict[str, Any]] = {}
        self._history: list[tuple[int, str, dict[str, Any]]] = []
        self._watches: set[Watch] = set()
        self._snapshots: dict[str, list[dict[str, Any]]] = {}

    async def start(self) -> None:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(self.ca_path, self._key_path)
        application = web.Application()
        path = f"/apis/discovery.k8s.io/v1/namespaces/{self._namespace}/endpointslices"
        application.router.add_get(path, self._get)
        self._runner = web.AppRunner(application, shutdown_timeout=0.1, access_log=None, handler_cancellation=True)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0, ssl_context=context)
        await site.start()
        self.url = f"https://127.0.0.1:{self._runner.addresses[0][1]}"

    async def stop(self) -> None:
        self.drop_watches()
        await self._runner.cleanup()

    @property
    def options(self) -> list[str]:
        """Of `stargate-k8s-router`, to use this server."""
        return [
            f"--kubernetes-api-url={self.url}",
            f"--kubernetes-ca-path={self.ca_path}",
            f"--kubernetes-token-path={self.token_path}",
        ]

    # --- what happens in the cluster -------------------------------------------------------------------------------

    async def apply(self, document: dict[str, Any]) -> None:
        """Create or replace a slice."""
        name = document["metadata"]["name"]
        await self._record("MODIFIED" if name in self._objects else "ADDED", document)

    async def delete(self, name: str) -> None:
        await self._record("DELETED", self._objects[name])

    async def _record(self, kind: str, document: dict[str, Any]) -> None:
        self._version += 1
        document = {**document, "metadata": {**document["metadata"], "resourceVersion": str(self._version)}}
        name = document["metadata"]["name"]
        if kind == "DELETED":
            del self._objects[name]
        else:
            self._objects[name] = document
        self._history.append((self._version, kind, document))
        for watch in set(self._watches):
            await watch.send(kind, document)

    # --- what happens to watches -----------------------------------------------------------------------------------

    @property
    def watching(self) -> int:
        return len(self._watches)

    def versions_watched(self) -> list[str]:
        """The versions from which watches were asked for, in their order."""
        return [query["resourceVersion"] for _, query in self.requests if query.get("watch") == "true"]

    def lists(self) -> int:
        """How many lists were begun."""
        return sum("watch" not in query and "continue" not in query for _, query in self.requests)

    async def bookmark(self) -> str:
        """Send a bookmark on every watch, as every minute; its version is that of something else that changed."""
        self._version += 1
        metadata = {"resourceVersion": str(self._version), "creationTimestamp": None}
        for watch in set(self._watches):
            await watch.send("BOOKMARK", {"kind": "EndpointSlice", "metadata": metadata})
        return str(self._version)

    def compact(self) -> None:
        """Forget the history: watches and pages from an earlier version are answered with 410."""
        self._version += 1
        self._compacted = self._version
        self._history.clear()
        self._snapshots.clear()

    async def send(self, kind: str, document: Any) -> None:
        """Send an event on every watch that is none of the cluster."""
        for watch in set(self._watches):
            await watch.send(kind, document)

    async def end_watches_as_gone(self) -> None:
        """As when a watch is too slow for the history."""
        for watch in set(self._watches):
            await watch.send("ERROR", _status(410, "Expired"))
            watch.ended.set()

    def end_watches(self) -> None:
        """As after `timeoutSeconds`."""
        for watch in set(self._watches):
            watch.ended.set()

    def drop_watches(self) -> None:
        """As when a server or a network fails."""
        for watch in set(self._watches):
            watch.drop()

    # --- HTTP ------------------------------------------------------------------------------------------------------

    async def _get(self, request: web.Request) -> web.StreamResponse:
        query = dict(request.query)
        self.requests.append((time.monotonic(), query))
        if request.headers.get("authorization") != f"Bearer {self.token}":
            return _refused(401)
        refusal = self.refusal(query)
        if refusal is not None:
            return _refused(refusal)
        if self.body is not None:
            return web.Response(body=self.body, content_type="application/json")
        if query.get("watch") == "true":
            return await self._watch(request, query)
        return self._list(query)

    def _list(self, query: dict[str, str]) -> web.Response:
        if "continue" in query:
            version, _, start = query["continue"].partition("-")
            if version not in self._snapshots:
                return _refused(410)
        else:
            version, start = str(self._version), "0"
            label, _, value = query["labelSelector"].partition("=")
            self._snapshots[version] = [
                one for one in self._objects.values() if one["metadata"]["labels"].get(label) == value
            ]
        items = self._snapshots[version]
        end = int(start) + int(query.get("limit", len(items) or 1))
        following = f"{version}-{end}" if end < len(items) else ""
        return web.json_response(
            {
                "kind": "EndpointSliceList",
                "apiVersion": "discovery.k8s.io/v1",
                "metadata": {"resourceVersion": version, "continue": following},
                "items": items[int(start) : end],
            }
        )

    async def _watch(self, request: web.Request, query: dict[str, str]) -> web.StreamResponse:
        answer = web.StreamResponse(headers={"content-type": "application/json"})
        await answer.prepare(request)
        assert isinstance(request.transport, asyncio.Transport)
        watch = Watch(answer, request.transport)
        since = int(query["resourceVersion"])
        if since < self._compacted:
            await watch.send("ERROR", _status(410, "Expired"))
            return answer
        self._watches.add(watch)
        self.opened += 1
        try:
            for version, kind, document in list(self._history):
                if version > since:
                    await watch.send(kind, document)
            async with asyncio.timeout(float(query["timeoutSeconds"])):
                await watch.ended.wait()
        except TimeoutError:
            pass
        finally:
            self._watches.discard(watch)
        return answer


def _status(code: int, reason: str) -> dict[str, Any]:
    return {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "code": code}


def _refused(status: int) -> web.Response:
    return web.json_response(_status(status, "Refused"), status=status)


class ApiInThread:
    """A `FakeKubernetesApi` for tests without a loop."""

    def __init__(self, folder: Path) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.api = FakeKubernetesApi(folder)
        self.call(self.api.start())

    def call(self, work: Coroutine[Any, Any, Result]) -> Result:
        """The result of a method of the server."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    def stop(self) -> None:
        self.call(self.api.stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()
