"""A load balancer in front of a gRPC port: ends TLS, notes what clients show, and passes the bytes on in cleartext."""

import asyncio
import ssl
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import h2.config
import h2.connection
import h2.events

from certs import Identity


class TlsTerminator:
    """What the clients of one listener have shown."""

    def __init__(self, identity: Identity, upstream: str, alpn: str) -> None:
        self.upstream = upstream
        """`host:port` of the cleartext port behind it; may be set after the start."""
        self.port = 0
        self.server_names: list[str | None] = []
        self.calls: list[dict[str, str]] = []
        """The pseudo header fields of each call."""
        self._alpn = alpn
        self._connections: set[asyncio.Task[None]] = set()
        self.identity = identity

    @property
    def identity(self) -> Identity:
        return self._identity

    @identity.setter
    def identity(self, identity: Identity) -> None:
        """Use another certificate from now on."""
        self._identity = identity
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        with tempfile.TemporaryDirectory() as folder:
            cert, key = Path(folder, "cert.pem"), Path(folder, "key.pem")
            cert.write_bytes(identity.cert_pem)
            key.write_bytes(identity.key_pem)
            context.load_cert_chain(cert, key)
        context.set_alpn_protocols([self._alpn])
        self._context = context

    def front(self) -> ssl.SSLContext:
        """The context to listen with, which takes the current certificate for each handshake."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.set_alpn_protocols([self._alpn])

        def chosen(connection: ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> None:
            self.server_names.append(name)
            connection.context = self._context

        context.sni_callback = chosen
        return context

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, _, port = self.upstream.rpartition(":")
        observer = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
        observer.initiate_connection()
        try:
            far_reader, far_writer = await asyncio.open_connection(host, int(port))
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._pump(reader, far_writer, observer))
                    group.create_task(self._pump(far_reader, writer, None))
            finally:
                far_writer.transport.abort()
        except OSError:
            pass  # the port behind is gone: the client sees the end of its connection
        finally:
            writer.transport.abort()

    def accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self.serve(reader, writer))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def drop(self) -> None:
        """End all connections."""
        connections = list(self._connections)
        for task in connections:
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)

    async def _pump(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        observer: h2.connection.H2Connection | None,
    ) -> None:
        with suppress(OSError):
            while data := await reader.read(65_536):
                writer.write(data)
                if observer is not None:
                    for event in observer.receive_data(data):
                        if isinstance(event, h2.events.RequestReceived):
                            fields = ((name.decode(), value.decode()) for name, value in event.headers)
                            self.calls.append({name: value for name, value in fields if name.startswith(":")})
                        elif isinstance(event, h2.events.DataReceived) and event.flow_controlled_length:
                            observer.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        writer.close()


@asynccontextmanager
async def tls_terminator(identity: Identity, upstream: str = "", *, alpn: str = "h2") -> AsyncIterator[TlsTerminator]:
    """Listens on a free port of 127.0.0.1."""
    terminator = TlsTerminator(identity, upstream, alpn)
    server = await asyncio.start_server(terminator.accepted, "127.0.0.1", 0, ssl=terminator.front())
    terminator.port = server.sockets[0].getsockname()[1]
    try:
        yield terminator
    finally:
        server.close()
        await terminator.drop()
