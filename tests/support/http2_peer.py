"""One side of an HTTP/2 connection, driven by a test frame by frame."""

import asyncio
import ssl
from typing import Any, TypeVar

import h2.config
import h2.connection
import h2.events

from certs import Identity
from support.waiting import DEADLINE_S

ROUTER_0 = "router-0.routers.nvcf.svc:50071"
Found = TypeVar("Found", bound=h2.events.Event)


def head(path: bytes, authority: str | None = ROUTER_0, **more: str) -> list[tuple[str, str]]:
    """The head of a call."""
    fields = {":method": "POST", ":scheme": "http", ":path": path.decode()}
    if authority is not None:
        fields[":authority"] = authority
    return list({**fields, "content-type": "application/grpc", **more}.items())


class Peer:
    """One side of a connection, driven by the test."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, client: bool) -> None:
        self.reader = reader
        self.writer = writer
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=client, header_encoding="ascii"))
        self.h2.initiate_connection()
        self.events: list[h2.events.Event] = []
        self.flush()

    @classmethod
    async def connect(cls, port: int, tls: ssl.SSLContext | None = None) -> "Peer":
        return cls(*await asyncio.open_connection("127.0.0.1", port, ssl=tls), client=True)

    def flush(self) -> None:
        self.writer.write(self.h2.data_to_send())

    def request(self, path: bytes, authority: str | None = ROUTER_0, **more: str) -> int:
        stream_id = self.h2.get_next_available_stream_id()
        self.h2.send_headers(stream_id, head(path, authority, **more))
        self.flush()
        return stream_id

    async def next(self, kind: type[Found], stream_id: int | None = None) -> Found:
        """Wait for an event of `kind`, and drop those before it."""
        async with asyncio.timeout(DEADLINE_S):
            while True:
                while self.events:
                    event = self.events.pop(0)
                    if isinstance(event, kind) and stream_id in (None, getattr(event, "stream_id", None)):
                        return event
                data = await self.reader.read(65_536)
                assert data, f"closed, waiting for {kind.__name__}"
                self.events += self.h2.receive_data(data)
                self.flush()

    async def status(self, stream_id: int) -> tuple[str, str]:
        """Status and text of a call that ends with trailers."""
        async with asyncio.timeout(DEADLINE_S):
            while True:
                event: Any = await self.next(h2.events.Event, stream_id)
                fields = dict(getattr(event, "headers", None) or ())
                if "grpc-status" in fields:
                    return fields["grpc-status"], fields["grpc-message"]

    async def closed(self) -> None:
        async with asyncio.timeout(DEADLINE_S):
            try:
                while await self.reader.read(65_536):
                    pass
            except ConnectionError:
                pass

    def close(self) -> None:
        self.writer.transport.abort()


def trusting(identity: Identity) -> ssl.SSLContext:
    context = ssl.create_default_context(cadata=identity.cert_pem.decode())
    context.set_alpn_protocols(["h2"])
    return context
