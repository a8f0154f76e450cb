"""QUIC endpoints on the loopback whose streams echo, for tests over real sockets."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import certs
from tunnel_protocol.errors import ConnectionClosedError
from tunnel_protocol.quic.aioquic_handshake import AioquicFactory
from tunnel_protocol.quic.connection import Connection
from tunnel_protocol.quic.endpoint import Endpoint
from tunnel_protocol.quic.settings import QuicSettings
from tunnel_protocol.quic.stream_interface import Stream, StreamHandler
from tunnel_protocol.quic.tls import ClientTls, ServerTls

IDENTITY = certs.make_self_signed(["localhost", "stargate"])
OTHER = certs.make_self_signed(["stargate"])
TRUSTING = ClientTls(IDENTITY.cert_pem, "stargate")


class EchoStream(StreamHandler):
    def __init__(self, echo_on: Stream | None = None) -> None:
        self.stream: Any = echo_on
        self.echo = echo_on is not None
        self.received = b""
        self.fin = asyncio.Event()
        self.reset: int | None = None
        self.stopped: int | None = None
        self.lost: ConnectionClosedError | None = None

    def on_data(self, data: bytes, fin: bool) -> None:
        self.received += data
        if self.echo:
            self.stream.write(data, fin=fin)
        if fin:
            self.fin.set()

    def on_reset(self, error_code: int) -> None:
        self.reset = error_code
        self.fin.set()

    def on_stop(self, error_code: int) -> None:
        self.stopped = error_code

    def on_writable(self) -> None: ...

    def on_connection_lost(self, error: ConnectionClosedError) -> None:
        self.lost = error
        self.fin.set()


class EchoConnection:
    """Echoes streams, or holds them open without an answer."""

    def __init__(self, *, echoes: bool = True) -> None:
        self.echoes = echoes
        self.talks: list[EchoStream] = []
        self.error: ConnectionClosedError | None = None
        self.closed = asyncio.Event()

    def on_stream(self, stream: Stream) -> EchoStream:
        talk = EchoStream(stream)
        talk.echo = self.echoes
        self.talks.append(talk)
        return talk

    def on_closed(self, error: ConnectionClosedError) -> None:
        assert self.error is None
        self.error = error
        self.closed.set()


class QuicEndpoints:
    def __init__(self, settings: QuicSettings) -> None:
        self.settings = settings
        self.accepted: list[Connection] = []
        self.owners: list[EchoConnection] = []
        self.failed: list[Any] = []
        self.endpoint: Endpoint
        self.clients: list[Endpoint] = []
        self.echoes = True

    def on_connection(self, connection: Connection) -> EchoConnection:
        self.accepted.append(connection)
        self.owners.append(EchoConnection(echoes=self.echoes))
        return self.owners[-1]

    async def dial(
        self,
        tls: ClientTls = TRUSTING,
        settings: QuicSettings | None = None,
        owner: EchoConnection | None = None,
        timeout_s: float = 5,
        port: int | None = None,
        udp: Any = None,
    ) -> Connection:
        """Connect a client of its own; through a relay if its `port` is given, from a socket that was made for it."""
        settings = settings or QuicSettings()
        if udp is None:
            client = await Endpoint.client(socket.AF_INET, settings)
        else:
            client = Endpoint(udp, settings, AioquicFactory(settings, None), None)
        self.clients.append(client)
        host, own_port = self.endpoint.local_address
        host = "127.0.0.1" if host == "0.0.0.0" else host
        return await client.connect(host, port or own_port, tls, owner or EchoConnection(), timeout_s)


@asynccontextmanager
async def quic_endpoints(
    settings: QuicSettings | None = None, identity: certs.Identity = IDENTITY, host: str = "127.0.0.1"
) -> AsyncIterator[QuicEndpoints]:
    endpoints = QuicEndpoints(settings or QuicSettings())
    tls = ServerTls(identity.cert_pem, identity.key_pem)
    endpoints.endpoint = await Endpoint.listen(
        host,
        0,
        tls,
        endpoints.settings,
        endpoints.on_connection,
        on_failed=lambda connection, _: endpoints.failed.append(connection),
    )
    try:
        yield endpoints
    finally:
        for client in endpoints.clients:
            await client.close()
        await endpoints.endpoint.close()


async def echoes(connection: Connection, data: bytes = b"hello" * 100) -> bool:
    talk = EchoStream()
    stream = await connection.open_stream(talk)
    stream.write(data, fin=True)
    await asyncio.wait_for(talk.fin.wait(), 5)
    return talk.received == data
