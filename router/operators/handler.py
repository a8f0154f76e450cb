"""Answers the requests of the operators' port: pages by path, the access rule, and errors of a page that fails.

The port is not on the request path. It is served by the same HTTP server as the front (`router/http1`), in one process as in
several. Every page may wait (for a file, or for other processes), so each request is answered by a task.
"""

import asyncio
import time
from collections.abc import Mapping
from typing import Final

import structlog

from router.http1.request import ClientRequest
from router.http1.response import Response, ResponseFlow
from router.http1.server import HttpServer
from router.http1.settings import ConnectionTimeouts, HttpSettings
from router.operators.access import UNAUTHORIZED_STATUS, Access
from router.operators.reply import Page, Reply, StreamPage
from tunnel_protocol.limit import Limit

_log = structlog.get_logger()

CONNECTIONS: Final = Limit("operators.connections", pieces=256)
"""Connections of the operators' port."""

_HTTP: Final = HttpSettings(
    close_unread=True,
    max_connections=CONNECTIONS.pieces or 0,
    timeouts=ConnectionTimeouts(discard=1.0, half_sent=1.0, watch=1.0, stalled=5.0, head=5.0, body=5.0),
)

_POST: Final = b"POST"


class OperatorsHandler:
    """Implements `ServerCallbacks`."""

    def __init__(self, pages: Mapping[bytes, Page | StreamPage], access: Access) -> None:
        self._pages = pages
        self._access = access
        self._answers: set[asyncio.Task[None]] = set()

    def server(self) -> HttpServer:
        """A server for a bound socket (`HttpServer.start`)."""
        return HttpServer(self, time.monotonic, _HTTP)

    # --- ServerCallbacks ---------------------------------------------------------------------------------------------

    def handle(self, request: ClientRequest, response: Response) -> ResponseFlow | None:
        """Answer by the page of the path."""
        page = self._pages.get(request.path)
        if page is not None and request.method in page.methods:
            answer = _Answer(self._access, page, request, response)
            self._answers.add(answer.task)
            answer.task.add_done_callback(self._answers.discard)
            return answer
        request.body.detach()
        if page is None:
            response.send(404, [])
        else:
            response.send(405, [(b"allow", b",".join(sorted(page.methods)))])
        return None

    def refuse(self, request: ClientRequest | None, response: Response, status: int, reason: str) -> None:  # noqa: ARG002
        """Answer an unusable request."""
        response.send(status, [])

    def connection_refused(self, reason: str) -> None:
        """A connection beyond the limit was closed."""


class _Answer:
    """The answer to one request; implements `ResponseFlow`, for itself or for the stream it has begun."""

    def __init__(self, access: Access, page: Page | StreamPage, request: ClientRequest, response: Response) -> None:
        self._access = access
        self._page = page
        self._request = request
        self._response = response
        self._stream: ResponseFlow | None = None
        if request.method != _POST:
            request.body.detach()
        self.task = asyncio.create_task(self._run())

    def pause_response(self) -> None:
        """The client reads slowly: of interest to a stream only."""
        if self._stream is not None:
            self._stream.pause_response()

    def resume_response(self) -> None:
        """The client reads again."""
        if self._stream is not None:
            self._stream.resume_response()

    def client_gone(self) -> None:
        """The client has closed."""
        self.task.cancel()
        if self._stream is not None:
            self._stream.client_gone()

    def client_stalled(self, status: int, reason: str) -> None:  # noqa: ARG002
        """The client has stopped sending its body."""
        self.task.cancel()
        self._response.send(status, [])

    async def _run(self) -> None:
        request, response, page = self._request, self._response, self._page
        try:
            refusal = await self._access.refusal(request, response.peer) if page.guarded else None
            if refusal is not None:
                form = page.login if isinstance(page, Page) and refusal.status == UNAUTHORIZED_STATUS else None
                _send(response, refusal if form is None else form())
            elif isinstance(page, StreamPage):
                self._stream = await page.begin(request, response)
            else:
                _send(response, await page.answer(request))
        except Exception:  # noqa: BLE001 - logged; a page that fails must not end the router
            _log.exception("a page of the operators' port failed", path=request.path.decode("latin-1"))
            if not response.started:
                response.send(500, [])


def _send(response: Response, reply: Reply) -> None:
    response.send(reply.status, reply.headers, reply.body)
