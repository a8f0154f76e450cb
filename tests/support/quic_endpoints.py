"""QUIC endpoints on the loopback whose streams echo, for tests over real sockets."""

import asyncio
import socket
from contextlib import asynccontextmanager

import certs
from tunnel_protocol.quic.aioquic_engine import AioquicFactory
from tunnel_protocol.quic.endpoint import Endpoint
from tunnel_protocol.quic.settings import QuicSettings
from tunnel_protocol.quic.tls import ClientTls, ServerTls

IDENTITY = certs.make_self_signed(["localhost", "stargate"])
OTHER = certs.make_self_signed(["stargate"])
TRUSTING = ClientTls(IDENTITY.cert_pem, "stargate")


class EchoStream:
    def __init__(self, echo_on=None):
        self.stream = echo_on
        self.echo = echo_on is not None
        self.received = b""
        self.fin = asyncio.Event()
        self.reset = None
        self.stopped = None
        self.lost = None

    def on_data(self, data, fin):
        self.received += data
        if self.echo:
            self.stream.write(data, fin=fin)
        if fin:
            self.fin.set()

    def on_reset(self, error_code):
        self.reset = error_code
        self.fin.set()

    def on_stop(self, error_code):
        self.stopped = error_code

    def on_writable(self): ...

    def on_connection_lost(self, error):
        self.lost = error
        self.fin.set()


class EchoConnection:
    """Echoes streams, or holds them open without an answer."""

    def __init__(self, *, echoes=True):
        self.echoes = echoes
        self.talks = []
        self.error = None
        self.closed = asyncio.Event()

    def on_stream(self, stream):
        talk = EchoStream(stream)
        talk.echo = self.echoes
        self.talks.append(talk)
        return talk

    def on_closed(self, error):
        assert self.error is None
        self.error = error
        self.closed.set()


class QuicEndpoints:
    def __init__(self, settings):
        self.settings = settings
        self.accepted = []
        self.owners = []
        self.failed = []
        self.endpoint = None
        self.clients = []
        self.echoes = True

    def on_connection(self, connection):
        self.accepted.append(connection)
        self.owners.append(EchoConnection(echoes=self.echoes))
        return self.owners[-1]

    async def dial(self, tls=TRUSTING, settings=None, owner=None, timeout_s=5, port=None, udp=None):
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
async def quic_endpoints(settings=None, identity=IDENTITY, host="127.0.0.1"):
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


async def echoes(connection, data=b"hello" * 100):
    talk = EchoStream()
    stream = await connection.open_stream(talk)
    stream.write(data, fin=True)
    await asyncio.wait_for(talk.fin.wait(), 5)
    return talk.received == data
