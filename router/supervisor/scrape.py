"""Reads a page of the metrics port of one process; it is on the loopback, and answers HTTP/1.1 with a length."""

import asyncio
from typing import NamedTuple

from tunnel_protocol.limit import Limit

PAGE = Limit("supervisor.page", bytes=64 << 20)
"""Body of one page of a process; a longer one counts as no answer."""

_MAX_HEAD_BYTES = 16 << 10


class NoPageError(Exception):
    """A process gave no answer, or none that is understood; `reason` says why."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Page(NamedTuple):
    """An answer."""

    status: int
    content_type: bytes
    body: bytes


async def fetch(address: str, target: bytes, timeout_s: float) -> Page:
    """`GET target` of the HTTP server at `address` (`ip:port`). Raises `NoPageError`."""
    host, _, port = address.rpartition(":")
    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_connection(host, int(port), limit=_MAX_HEAD_BYTES)
            try:
                request = b"GET %b HTTP/1.1\r\nhost: %b\r\nconnection: close\r\n\r\n" % (target, address.encode())
                writer.write(request)
                return await _read(reader)
            finally:
                writer.close()
    except TimeoutError:
        raise NoPageError(f"no answer within {timeout_s} s") from None
    except (OSError, EOFError, ValueError, asyncio.LimitOverrunError) as error:
        raise NoPageError(str(error) or type(error).__name__) from None


async def _read(reader: asyncio.StreamReader) -> Page:
    lines = (await reader.readuntil(b"\r\n\r\n")).split(b"\r\n")
    fields = {name.strip().lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines[1:])}
    length = int(fields.get(b"content-length", b"-1"))
    if not 0 <= length <= (PAGE.bytes or 0):
        raise NoPageError(f"a body of {length} bytes")
    return Page(int(lines[0].split(b" ")[1]), fields.get(b"content-type", b""), await reader.readexactly(length))
