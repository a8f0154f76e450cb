"""Reads the API of a router (docs/api.md): its state once, its events, explanations. Every wait has a limit."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import aiohttp
import msgspec

from router.operators.access import TOKEN
from router.operators.live_document import API, Live
from router.top.detail import Query
from router.top.event_stream import DOCUMENT, EventStream, EventTooLargeError
from router.top.printable import printable
from tunnel_protocol.small_file import SmallFileError, read_small_file

_CONNECT_S: Final = 5.0
_SILENCE_S: Final = 6.0
"""Without a byte in this time a connection has ended: a router sends an event each second."""

_MAX_BYTES: Final = DOCUMENT.bytes or 0
_MAX_REASON: Final = 300
_REFUSED: Final = (401, 403)


class RouterError(Exception):
    """The router is not reached, or its answer is not understood; the message is printable and says why."""


class AccessRefusedError(RouterError):
    """The router wants a token, or another one, or the token file cannot be used."""


class RouterClient:
    """One router."""

    def __init__(self, url: str, token_file: Path | None) -> None:
        """`url` has no path. The token file is read for each connection, so a new token counts at once."""
        self._base = url + API
        self._token_file = token_file

    async def live(self) -> bytes:
        """`/api/v1/live`, as the router says it. Raises `RouterError`."""
        async with self._answer("/live") as answer:
            return await _body(answer)

    async def explain(self, query: Query) -> object:
        """`/api/v1/explain`. Raises `RouterError`."""
        async with self._answer("/explain", query) as answer:
            body = await _body(answer)
        try:
            return json.loads(body)
        except ValueError as error:
            raise RouterError("the answer is no JSON") from error

    async def events(self) -> AsyncIterator[tuple[str, Live]]:
        """Name and content of each event, until the router ends the stream. Raises `RouterError`."""
        stream = EventStream()
        async with self._answer("/events") as answer:
            async for chunk in answer.content.iter_any():
                for event in stream.feed(chunk):
                    yield event.name, decoded(event.data)

    @asynccontextmanager
    async def _answer(self, path: str, query: Query = ()) -> AsyncIterator[aiohttp.ClientResponse]:
        """An answer with status 200. Raises `RouterError`, also for what goes wrong while it is read."""
        headers = self._headers()
        limits = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S, sock_read=_SILENCE_S)
        try:
            async with (
                aiohttp.ClientSession(timeout=limits) as session,
                session.get(self._base + path, params=query, headers=headers, allow_redirects=False) as answer,
            ):
                if answer.status != 200:
                    reason = printable((await answer.content.read(_MAX_REASON)).decode("utf-8", "replace").strip())
                    kind = AccessRefusedError if answer.status in _REFUSED else RouterError
                    raise kind(reason or f"the answer is {answer.status}")
                yield answer
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            raise RouterError(printable(str(error)) or "no answer in time") from error
        except EventTooLargeError as error:
            raise RouterError(str(error)) from error

    def _headers(self) -> dict[str, str]:
        if self._token_file is None:
            return {}
        try:
            token = read_small_file(self._token_file, TOKEN).strip().decode("ascii")
        except (SmallFileError, UnicodeDecodeError) as error:
            reason = error.reason if isinstance(error, SmallFileError) else "it is not ASCII"
            raise AccessRefusedError(printable(f"{self._token_file} cannot be used: {reason}")) from error
        if not token or any(character <= " " or character == "\x7f" for character in token):
            raise AccessRefusedError(printable(f"{self._token_file} cannot be used: it has to hold one token"))
        return {"authorization": f"Bearer {token}"}


def decoded(body: bytes) -> Live:
    """`/api/v1/live` or an event as values. Raises `RouterError` if it is none of version 1."""
    try:
        return msgspec.json.decode(body, type=Live)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise RouterError(f"the answer is not of the API that this version knows: {printable(str(error))}") from error


async def _body(answer: aiohttp.ClientResponse) -> bytes:
    body = bytearray()
    async for chunk in answer.content.iter_any():
        body += chunk
        if len(body) > _MAX_BYTES:
            raise RouterError(f"the answer has more than {_MAX_BYTES} bytes")
    return bytes(body)
