"""A client of raw bytes: sends what it is told, reads responses strictly."""

import asyncio
import socket
import struct
from typing import Any

from support.waiting import DEADLINE_S

CHAT = "/v1/chat/completions"


class HttpAnswer:
    def __init__(self, status: int, headers: list[tuple[str, str]], version: str) -> None:
        self.status = status
        self.fields = headers
        self.version = version
        self.body = b""
        self.chunks: list[bytes] = []

    def header(self, name: str) -> str | None:
        values = [value for key, value in self.fields if key == name]
        assert len(values) < 2, values
        return values[0] if values else None

    @property
    def is_empty(self) -> bool:
        return self.body == b"" and self.header("content-length") == "0" and self.header("content-type") is None


class BrokenOffError(Exception):
    """The connection ended inside a response; `answer` is what had arrived."""

    def __init__(self, answer: HttpAnswer | None) -> None:
        super().__init__("broken off")
        self.answer = answer


class HttpClient:
    """Sends raw bytes, reads responses strictly."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def connect(cls, port: int, **options: Any) -> "HttpClient":
        return cls(*await asyncio.open_connection("127.0.0.1", port, **options))

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    def half_close(self) -> None:
        self.writer.write_eof()

    def leave(self) -> None:
        """Gone at once, by a reset. An ordinary close could stand behind bytes that the server does not read."""
        sock = self.writer.get_extra_info("socket")
        if sock is not None and not self.writer.is_closing():
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    def close(self) -> None:
        """What a client library does that has had enough."""
        self.writer.transport.abort()

    async def head(self) -> HttpAnswer:
        try:
            async with asyncio.timeout(DEADLINE_S):
                raw = await self.reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            raise BrokenOffError(None) from error
        first, *lines = raw[:-4].decode("latin-1").split("\r\n")
        version, status, _ = first.split(" ", 2)
        headers = []
        for line in lines:
            name, separator, value = line.partition(": ")
            assert separator, line
            assert name == name.lower()
            headers.append((name, value))
        return HttpAnswer(int(status), headers, version)

    async def answer(self, *, head_only: bool = False) -> HttpAnswer:
        answer = await self.head()
        if not head_only and answer.status not in (100, 204, 304):
            await self.rest(answer)
        return answer

    async def rest(self, answer: HttpAnswer) -> HttpAnswer:
        """The body of a response whose head was read. Raises `BrokenOffError`."""
        try:
            async with asyncio.timeout(DEADLINE_S):
                if answer.header("transfer-encoding") == "chunked":
                    assert answer.header("content-length") is None
                    while chunk := await self.chunk():
                        answer.chunks.append(chunk)
                        answer.body += chunk
                elif (length := answer.header("content-length")) is not None:
                    answer.body += await self.reader.readexactly(int(length))
                else:
                    answer.body += await self.reader.read()
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            raise BrokenOffError(answer) from error
        return answer

    async def chunk(self) -> bytes:
        """One chunk of a chunked body; empty at its end."""
        async with asyncio.timeout(DEADLINE_S):
            line = await self.reader.readuntil(b"\r\n")
            size = int(line, 16)
            return (await self.reader.readexactly(size + 2))[:-2]

    async def closed(self) -> bool:
        """True once the server has closed (nothing more may come before that)."""
        try:
            async with asyncio.timeout(DEADLINE_S):
                return await self.reader.read() == b""
        except ConnectionError:
            return True


def post(
    path: str = CHAT,
    body: bytes = b"{}",
    *,
    model: str = "m",
    chunked: bool = False,
    version: str = "1.1",
    **headers: object,
) -> bytes:
    """A request as a gateway sends it. Headers by keyword replace those; None leaves one out."""
    fields: dict[str, object] = {"host": "router", "x-request-id": "r-1", "x-model": model, "x-input-tokens": "12"}
    if chunked:
        fields["transfer-encoding"] = "chunked"
        body = (b"%x\r\n%b\r\n" % (len(body), body) if body else b"") + b"0\r\n\r\n"
    else:
        fields["content-length"] = str(len(body))
    for name, value in headers.items():
        fields[name.replace("_", "-")] = value
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items() if value is not None)
    return f"POST {path} HTTP/{version}\r\n{lines}\r\n".encode("latin-1") + body


def get(path: str, **headers: object) -> bytes:
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    return f"GET {path} HTTP/1.1\r\nhost: router\r\n{lines}\r\n".encode()
