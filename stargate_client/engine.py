"""The HTTP client towards the engine: health, model list, and streamed requests."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import msgspec
from multidict import CIMultiDict
from yarl import URL

from stargate_client.settings import WorkerSettings
from tunnel_protocol.head import HeaderList


class EngineConnectError(Exception):
    """The engine cannot be reached."""


class _Model(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[_Model]


class Engine:
    """One engine behind one worker."""

    def __init__(self, settings: WorkerSettings) -> None:
        self._settings = settings
        self._base = settings.engine_url
        self._health_path: str | None = None
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=30),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=10),
            auto_decompress=False,
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
            cookie_jar=aiohttp.DummyCookieJar(),
        )

    @property
    def health_path(self) -> str:
        """The path that answered last, or the first candidate."""
        return self._health_path or self._settings.health_paths[0]

    async def healthy(self) -> bool:
        """Whether any health path answers with success."""
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
        """The engine's model list, or None if it cannot be had right now."""
        try:
            async with (
                asyncio.timeout(self._settings.discovery_timeout_ms / 1000),
                self._session.get(self._base + "/v1/models") as response,
            ):
                if response.status != 200:
                    return None
                found = msgspec.json.decode(await response.read(), type=_Models)
        except (aiohttp.ClientError, OSError, TimeoutError, msgspec.DecodeError):
            return None
        names = {model.id.strip() for model in found.data}
        return None if "" in names else tuple(sorted(names))

    @asynccontextmanager
    async def request(
        self, method: str, path: str, headers: HeaderList, body: bytes
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send a request; the response's body is read by the caller. Raises `EngineConnectError`, `aiohttp.ClientError`."""
        sent: CIMultiDict[str] = CIMultiDict((name.decode(), value.decode("latin-1")) for name, value in headers)
        sent.popall("content-length", None)  # the body is whole by now; its length is known
        try:
            context = self._session.request(
                method, URL(self._base + path, encoded=True), headers=sent, data=body or None, allow_redirects=True
            )
            response = await context.__aenter__()
        except aiohttp.ClientConnectorError as error:
            raise EngineConnectError(str(error)) from error
        try:
            yield response
        finally:
            # Closes the connection unless the body was read to its end: the engine notices that nobody listens.
            if not response.content.at_eof():
                response.close()
            await context.__aexit__(None, None, None)

    async def close(self) -> None:
        """Drop all connections."""
        await self._session.close()
