"""The operators' port of one process: metrics, explanations, the live page and its API. It is not on the request path."""

import asyncio
import socket
from collections.abc import Mapping
from typing import Final

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest

from router.http1.request import ClientRequest
from router.operators.access import Access
from router.operators.handler import OperatorsHandler
from router.operators.live_feed import LiveFeed
from router.operators.reply import Page, Reply, StreamPage
from router.telemetry.metrics import Metrics

EXPOSITION: Final = [(b"content-type", b"text/plain; version=0.0.4")]

_LAST_ANSWERS_S: Final = 1.0
"""Seconds that running answers have after `stop`."""


class OperatorsServer:
    """Serves the metrics and further pages on a socket that is already bound."""

    def __init__(
        self,
        metrics: Metrics,
        *,
        all_families: bool,
        pages: Mapping[bytes, Page | StreamPage] | None = None,
        access: Access | None = None,
        feed: LiveFeed | None = None,
    ) -> None:
        """`all_families`: `/metrics` shows the additional families too; `pages` are further ones, with the rule for them.

        `feed` is that of the pages; its streams end with the server.
        """
        self._feed = feed
        self._metrics = metrics
        self._all_families = all_families
        self._process = CollectorRegistry()
        ProcessCollector(registry=self._process)
        own: dict[bytes, Page | StreamPage] = {
            b"/metrics": Page(self._contract),
            b"/metrics/all": Page(self._everything),
        }
        self._http = OperatorsHandler({**own, **(pages or {})}, access or Access(None)).server()
        self._stopping = asyncio.Event()

    @property
    def connections(self) -> int:
        """Number of open connections."""
        return self._http.connections

    async def start(self, bound: socket.socket) -> None:
        """Accept connections."""
        await self._http.start(bound)

    async def serve(self) -> None:
        """Serve until `stop`; returns when all connections have closed."""
        try:
            await self._stopping.wait()
            if self._feed is not None:
                self._feed.close()
            await self._http.drain(_LAST_ANSWERS_S)
        finally:
            self._http.abort()

    def stop(self) -> None:
        """Close the listener and end `serve`."""
        self._stopping.set()

    async def _contract(self, request: ClientRequest) -> Reply:
        if self._all_families:
            return await self._everything(request)
        return Reply(200, EXPOSITION, self._metrics.render())

    async def _everything(self, _request: ClientRequest) -> Reply:
        return Reply(200, EXPOSITION, self._metrics.render(additional=True) + generate_latest(self._process))
