"""A bounded load of streamed chat completions over kept connections, from one process."""

import asyncio
import json
import math
import re
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

_EVENT = b"data: {"
_ID = "id-of-this-request"
_MOST_HEAD_BYTES = 64 * 1024
_REQUEST_LIMIT_S = 60.0


class Shape(NamedTuple):
    """How a proxy is loaded."""

    name: str
    connections: int
    tokens: int
    """Of each answer."""


@dataclass
class Load:
    """What a load found; times are of requests that were answered in full."""

    requests: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    """How often which error came."""
    chunks: int = 0
    """Events of the answers, without `[DONE]`."""
    wall_s: float = 0.0
    first_s: list[float] = field(default_factory=list)
    """From the request to the first byte of the answer's body."""
    whole_s: list[float] = field(default_factory=list)


def quantile(values: list[float], share: float) -> float:
    """The smallest value that `share` of all are not above; NaN without values."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)] if values else math.nan


async def run_load(
    address: str,
    headers: dict[str, str],
    shape: Shape,
    seconds: float,
    most: int,
    *,
    asks_for_usage: bool = False,
) -> Load:
    """Send requests for `seconds`, but at most `most`, and wait for those that are running then.

    A request that fails, by its status, a cut or a missing `[DONE]`, counts as failed, and its connection is made anew.
    """
    load = Load()
    asked: dict[str, object] = {
        "model": "my-model",
        "stream": True,
        "max_tokens": shape.tokens,
        "messages": [{"role": "user", "content": "x" * 400}],
    }
    if asks_for_usage:
        asked["stream_options"] = {"include_usage": True}
    body = json.dumps(asked).encode()
    fields = {
        "x-request-id": _ID,
        "host": address,
        "content-type": "application/json",
        "content-length": str(len(body)),
        **headers,
    }
    head = "POST /v1/chat/completions HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    request = head.encode() + b"\r\n" + body
    began = time.monotonic()
    left = iter(range(most))

    prefix = f"bench-{time.monotonic_ns()}-"

    async def client() -> None:
        connection: _Connection | None = None
        while time.monotonic() - began < seconds and (number := next(left, None)) is not None:
            try:
                if connection is None:
                    connection = await _Connection.open(address)
                async with asyncio.timeout(_REQUEST_LIMIT_S):
                    first_s, whole_s, chunks = await connection.ask(
                        request.replace(_ID.encode(), f"{prefix}{number}".encode())
                    )
            except (OSError, ValueError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
                load.failures[f"{type(error).__name__} {error}".strip()] += 1
                if connection is not None:
                    connection.close()
                    connection = None
                await asyncio.sleep(0.05)
                continue
            load.requests += 1
            load.chunks += chunks
            load.first_s.append(first_s)
            load.whole_s.append(whole_s)
        if connection is not None:
            connection.close()

    await asyncio.gather(*(client() for _ in range(shape.connections)))
    load.wall_s = time.monotonic() - began
    return load


class _Connection:
    """One connection, one request at a time."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, address: str) -> "_Connection":
        host, _, port = address.rpartition(":")
        return cls(*await asyncio.open_connection(host, int(port), limit=_MOST_HEAD_BYTES))

    async def ask(self, request: bytes) -> tuple[float, float, int]:
        """Seconds to the first byte of the body and to the end, and the events. Raises ValueError if it is no full answer."""
        began = time.monotonic()
        self._writer.write(request)
        head = (await self._reader.readuntil(b"\r\n\r\n")).lower()
        if not head.startswith(b"http/1.1 200"):
            length = re.search(rb"content-length: (\d+)", head)
            body = await self._reader.readexactly(min(int(length[1]), _MOST_HEAD_BYTES) if length else 0)
            raise ValueError(f"{head[9:12].decode('latin-1')} {body[:200].decode('utf-8', 'replace')}".strip())
        if b"transfer-encoding: chunked" not in head:
            raise ValueError("not streamed")
        first_s = 0.0
        pieces: list[bytes] = []
        while size := int((await self._reader.readline()).split(b";")[0], 16):
            pieces.append(await self._reader.readexactly(size))
            await self._reader.readexactly(2)
            first_s = first_s or time.monotonic() - began
        await self._reader.readuntil(b"\r\n")
        text = b"".join(pieces)
        if b"data: [DONE]" not in text:
            raise ValueError("cut")
        return first_s, time.monotonic() - began, text.count(_EVENT)

    def close(self) -> None:
        self._writer.close()
