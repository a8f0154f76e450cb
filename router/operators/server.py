"""The HTTP server on the metrics port, for operators; it is not on the request path.

Serves `GET /metrics` and `/metrics/all`; further pages (`explain`) are mounted as Starlette routes. It uses an ordinary
framework on the same event loop, because scrapes are rare and small (docs/operations.md, "Metrics").
"""

import asyncio
import socket
from collections.abc import Sequence
from contextlib import nullcontext, suppress

import structlog
import uvicorn
from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from router.telemetry.metrics import Metrics
from tunnel_protocol.limit import Limit

_log = structlog.get_logger()

CONNECTIONS = Limit("operators.connections", pieces=256)
"""Limit of concurrent connections and requests."""

_AGAIN_S = 1.0
"""Seconds before a server that ended is started again."""

_EXPOSITION = {"content-type": "text/plain; version=0.0.4"}


class OperatorsServer:
    """Serves the metrics and the mounted routes on a socket that is already bound."""

    def __init__(self, metrics: Metrics, *, all_families: bool, mounts: Sequence[BaseRoute] = ()) -> None:
        """`all_families`: `/metrics` shows the additional families too; `mounts` are further routes."""
        self._metrics = metrics
        self._all_families = all_families
        self._process = CollectorRegistry()
        ProcessCollector(registry=self._process)
        routes: list[BaseRoute] = [
            Route("/metrics", self._contract, methods=["GET"]),
            Route("/metrics/all", self._everything, methods=["GET"]),
            *mounts,
        ]
        application = Starlette(routes=routes, exception_handlers={404: _empty, 405: _empty})
        application.router.redirect_slashes = False
        self._config = uvicorn.Config(
            application,
            http="h11",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=1,
            limit_concurrency=CONNECTIONS.pieces,
        )
        self.uvicorn = _QuietServer(self._config)
        """The uvicorn server that runs now."""
        self._stopping = asyncio.Event()

    async def serve(self, bound: socket.socket) -> None:
        """Serve until `stop`; returns when all connections have closed.

        A failure of this server does not end the router: a server that ends by itself is logged and started again.
        """
        with bound:
            while not self._stopping.is_set():
                failure: BaseException | None = None
                try:
                    await self.uvicorn.serve([bound.dup()])
                except (Exception, SystemExit) as error:  # noqa: BLE001 - uvicorn raises SystemExit if it cannot start
                    failure = error
                if not self._stopping.is_set():
                    _log.error("metrics server ended; it is started again", exc_info=failure)
                    self.uvicorn = _QuietServer(self._config)
                    with suppress(TimeoutError):
                        await asyncio.wait_for(self._stopping.wait(), _AGAIN_S)

    async def wait_started(self) -> None:
        """Return when the server accepts connections."""
        while not self.uvicorn.started:  # noqa: ASYNC110 - the library offers no event for it
            await asyncio.sleep(0.005)

    def stop(self) -> None:
        """Close the listener and end `serve`."""
        self._stopping.set()
        self.uvicorn.should_exit = True
        self.uvicorn.stopping.set()

    async def _contract(self, request: Request) -> Response:
        if self._all_families:
            return await self._everything(request)
        return Response(self._metrics.render(), headers=_EXPOSITION)

    async def _everything(self, _request: Request) -> Response:
        page = self._metrics.render(additional=True) + generate_latest(self._process)
        return Response(page, headers=_EXPOSITION)


async def _empty(_request: Request, error: Exception) -> Response:
    headers = dict(getattr(error, "headers", None) or {})
    if "Allow" in headers:
        headers["Allow"] = ",".join(sorted(method.strip() for method in headers["Allow"].split(",")))
    return Response(status_code=getattr(error, "status_code", 500), headers=headers)


class _QuietServer(uvicorn.Server):
    """A uvicorn server that installs no signal handlers (`lifecycle.py` does) and wakes once a second, not ten times."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.stopping = asyncio.Event()

    async def main_loop(self) -> None:
        """Renew the `date` header until `stopping` is set."""
        while not await self.on_tick(0):
            with suppress(TimeoutError):
                await asyncio.wait_for(self.stopping.wait(), 1.0)

    def capture_signals(self) -> nullcontext[None]:  # type: ignore[override]  # a context manager that does nothing
        return nullcontext()
