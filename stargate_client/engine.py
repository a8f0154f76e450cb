"""The HTTP client for the engine: health, model list, and streamed requests."""

import asyncio
import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace

import aiohttp
import msgspec
from multidict import CIMultiDict
from yarl import URL

from stargate_client.settings import WorkerSettings
from tunnel_protocol.head import HeaderList
from tunnel_protocol.limit import Limit

ANSWER_HEAD_LINE = Limit("worker.engine_answer_header", bytes=512 * 1024, pieces=1024)
"""Bytes of one header line, and header lines, of an engine's response. Above it the worker answers a final 502."""

_LARGE_BYTES = 512 * 1024

RACE_S = 5.0
"""Seconds. If a kept-alive connection ends this soon after a request was sent on it, the engine was already closing it."""


class EngineConnectError(Exception):
    """The engine cannot be reached."""


class EngineAnswerError(Exception):
    """The engine's answer is not a valid HTTP response head; `reason` is for the log."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class _Sent:
    """Whether and when a request was sent on a connection that had served another request before."""

    __slots__ = ("reused",)

    def __init__(self) -> None:
        self.reused = False


class _Model(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[_Model]


class Engine:
    """The engine of a worker."""

    def __init__(self, settings: WorkerSettings) -> None:
        self._settings = settings
        self._base = settings.engine_url
        self._health_path: str | None = None
        self._session = _session(aiohttp.TCPConnector(limit=0, keepalive_timeout=30))
        # For repeating a request whose kept-alive connection was being closed by the engine: always a new connection.
        self._fresh = _session(aiohttp.TCPConnector(limit=0, force_close=True))

    @property
    def health_path(self) -> str:
        """The health path that answered last, or the first candidate."""
        return self._health_path or self._settings.health_paths[0]

    async def healthy(self) -> bool:
        """Whether any health path answers with a 2xx status."""
        candidates = dict.fromkeys([self.health_path, *self._settings.health_paths])
        for path in candidates:
            try:
                async with (
                    asyncio.timeout(self._settings.health_timeout_ms / 1000),
                    self._session.get(self._base + path) as response,
                ):
                    if 200 <= response.status < 300:
                        self._health_path = path
                        return True
            except (aiohttp.ClientError, OSError, TimeoutError):
                continue
        return False

    async def models(self) -> tuple[str, ...] | None:
        """The engine's model list, or None if the engine does not return one now."""
        try:
            async with (
                asyncio.timeout(self._settings.discovery_timeout_ms / 1000),
                self._session.get(self._base + "/v1/models") as response,
            ):
                if response.status != 200:
                    return None
                found = msgspec.json.decode(await response.read(), type=_Models)
        except (aiohttp.ClientError, OSError, TimeoutError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None
        names = {model.id.strip() for model in found.data}
        return None if "" in names else tuple(sorted(names))

    @asynccontextmanager
    async def request(
        self, method: str, path: str, headers: HeaderList, body: bytes
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send a request; the caller reads the response body.

        Raises `EngineConnectError`, `EngineAnswerError`, `aiohttp.ClientError`.
        """
        sent: CIMultiDict[str] = CIMultiDict((name.decode(), value.decode("latin-1")) for name, value in headers)
        sent.popall("content-length", None)  # the body is complete: the HTTP client sets its length
        response = await self._ask(method, URL(self._base + path, encoded=True), sent, body or None)
        try:
            yield response
        finally:
            # Close the connection unless the body was read to its end, so that the engine stops generating.
            if not response.content.at_eof():
                response.close()
            response.release()

    async def _ask(
        self, method: str, url: URL, headers: CIMultiDict[str], body: bytes | None
    ) -> aiohttp.ClientResponse:
        """The engine's response, its body not yet read. Raises like `request`."""
        on_its_way = _Sent()
        began = asyncio.get_running_loop().time()
        try:
            return await self._session.request(
                method, url, headers=headers, data=_payload(body), allow_redirects=True, trace_request_ctx=on_its_way
            )
        except aiohttp.ClientConnectorError as error:
            raise EngineConnectError(str(error)) from error
        except aiohttp.ClientResponseError as error:
            raise EngineAnswerError(error.message or str(error)) from error
        except aiohttp.ClientConnectionError as error:
            in_time = asyncio.get_running_loop().time() - began < RACE_S
            if not (on_its_way.reused and in_time) or _answer_begun(error):
                raise
        # RFC 9112 section 9.3.1: the engine closed an idle connection while it was reused, so the request was not processed.
        try:
            return await self._fresh.request(method, url, headers=headers, data=_payload(body), allow_redirects=True)
        except aiohttp.ClientConnectorError as error:
            raise EngineConnectError(str(error)) from error
        except aiohttp.ClientResponseError as error:
            raise EngineAnswerError(error.message or str(error)) from error

    async def close(self) -> None:
        """Close all connections."""
        await self._session.close()
        await self._fresh.close()


def _payload(body: bytes | None) -> bytes | io.BytesIO | None:
    """The body for the HTTP client: a large one as a file, which is sent in pieces and does not block other requests."""
    return body if body is None or len(body) < _LARGE_BYTES else io.BytesIO(body)


def _session(connector: aiohttp.TCPConnector) -> aiohttp.ClientSession:
    traces = aiohttp.TraceConfig()
    traces.on_connection_reuseconn.append(_reused)
    return aiohttp.ClientSession(
        connector=connector,
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=10),
        auto_decompress=False,
        skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
        cookie_jar=aiohttp.DummyCookieJar(),
        max_line_size=ANSWER_HEAD_LINE.bytes or 0,
        max_field_size=ANSWER_HEAD_LINE.bytes or 0,
        max_headers=ANSWER_HEAD_LINE.pieces or 0,
        trace_configs=[traces],
    )


async def _reused(
    session: aiohttp.ClientSession,  # noqa: ARG001
    context: SimpleNamespace,
    params: aiohttp.TraceConnectionReuseconnParams,  # noqa: ARG001
) -> None:
    if isinstance(context.trace_request_ctx, _Sent):
        context.trace_request_ctx.reused = True


def _answer_begun(error: aiohttp.ClientConnectionError) -> bool:
    """Whether bytes of a response had arrived when the connection ended."""
    return isinstance(error, aiohttp.ServerDisconnectedError) and not isinstance(error.message, str)
