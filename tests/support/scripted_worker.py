"""A worker that does exactly what a test says, on a real QUIC connection: speaks the wire by hand, right or wrong."""

import asyncio
import socket
from collections.abc import Callable

import certs
from support.waiting import DEADLINE_S
from tunnel_protocol import capnp
from tunnel_protocol.errors import ConnectionClosedError
from tunnel_protocol.head import RequestHead, ResponseHead
from tunnel_protocol.quic.connection import Connection
from tunnel_protocol.quic.endpoint import Endpoint
from tunnel_protocol.quic.settings import QuicSettings
from tunnel_protocol.quic.stream_interface import Stream, StreamHandler
from tunnel_protocol.quic.tls import ClientTls, ServerTls
from tunnel_protocol.raw_quic import RAW_QUIC


class ScriptedStream(StreamHandler):
    """One stream and everything that happened on it."""

    def __init__(self) -> None:
        self.stream: Stream | None = None
        self.received = b""
        self.fin = False
        self.reset = False
        self.stopped = False
        self.codes: list[int] = []
        self.lost: ConnectionClosedError | None = None
        self._changed = asyncio.Event()

    def on_data(self, data: bytes, fin: bool) -> None:
        self.received += data
        self.fin = self.fin or fin
        self._changed.set()

    def on_reset(self, error_code: int) -> None:
        self.reset = True
        self.codes.append(error_code)
        self._changed.set()

    def on_stop(self, error_code: int) -> None:
        self.stopped = True
        self.codes.append(error_code)
        self._changed.set()

    def on_writable(self) -> None:
        self._changed.set()

    def on_connection_lost(self, error: ConnectionClosedError) -> None:
        self.lost = error
        self._changed.set()

    async def until(self, condition: Callable[["ScriptedStream"], object]) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while not condition(self):
                self._changed.clear()
                await self._changed.wait()

    def send(self, data: bytes, *, fin: bool = False) -> None:
        assert self.stream is not None
        self.stream.write(data, fin=fin)


class TunnelledRequest(ScriptedStream):
    """A request stream the router opened; answers it like a worker."""

    def __init__(self) -> None:
        super().__init__()
        self.head: RequestHead | None = None
        self.body = bytearray()
        self.complete = False
        self._exchange = RAW_QUIC.worker_exchange(self)

    def on_data(self, data: bytes, fin: bool) -> None:
        self._exchange.receive(data, fin)
        super().on_data(b"", fin)

    def on_head(self, head: RequestHead) -> None:
        self.head = head

    def on_body(self, data: bytes) -> None:
        self.body += data

    def on_end(self) -> None:
        self.complete = True

    @property
    def is_probe(self) -> bool:
        return self.head is not None and self.head.path == b"/health"

    def header(self, name: str) -> str | None:
        """The only value of a header of the request."""
        assert self.head is not None
        values = [value.decode("latin-1") for key, value in self.head.headers if key == name.encode()]
        assert len(values) < 2, values
        return values[0] if values else None

    def send_head(self, status: int = 200, **headers: object) -> None:
        """Header names with `_` for `-`."""
        named = {"content-type": "text/plain", **{name.replace("_", "-"): value for name, value in headers.items()}}
        entries = [(name.encode(), str(value).encode()) for name, value in named.items()]
        self.send(self._exchange.encode_head(ResponseHead(status, entries)))

    def send_body(self, data: bytes) -> None:
        self.send(self._exchange.encode_body(data))

    def end(self) -> None:
        self.send(self._exchange.encode_end(), fin=True)

    def answer(self, status: int = 200, body: bytes = b"ok", **headers: object) -> None:
        self.send_head(status, **headers)
        self.send_body(body)
        self.end()

    def stop_upload(self) -> None:
        """Ask the router for no more of the body."""
        assert self.stream is not None
        self.stream.stop(0)

    def break_off(self) -> None:
        """Reset the response."""
        assert self.stream is not None
        self.stream.reset(0)


class ScriptedWorker:
    """The connection, the requests that arrive on it, and how it ended."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self.connection: Connection
        self.requests: list[TunnelledRequest] = []
        self.probes: list[TunnelledRequest] = []
        self.answers_probes = True
        self.probe_status = 200
        self.closed: asyncio.Future[ConnectionClosedError] = asyncio.get_running_loop().create_future()
        self._arrived = asyncio.Event()

    @classmethod
    async def dial(
        cls,
        port: int,
        *,
        trust_pem: bytes | None = None,
        server_name: str = "stargate",
        settings: QuicSettings | None = None,
        alpn: tuple[str, ...] = (),
    ) -> "ScriptedWorker":
        """A QUIC connection to the listener; no tunnel handshake yet."""
        worker = cls(await Endpoint.client(socket.AF_INET, settings or QuicSettings()))
        tls = ClientTls(trust_pem=trust_pem, server_name=server_name, insecure=trust_pem is None, alpn=alpn)
        try:
            worker.connection = await worker._endpoint.connect("127.0.0.1", port, tls, worker, DEADLINE_S)
        except BaseException:
            await worker._endpoint.close()
            raise
        return worker

    @classmethod
    async def listen(cls, port: int = 0) -> "ScriptedWorker":
        """A worker that is dialled; `connection` is the latest one."""
        identity = certs.make_self_signed(["stargate"])
        tls = ServerTls(identity.cert_pem, identity.key_pem)

        def connected(connection: Connection) -> "ScriptedWorker":
            worker.connection = connection
            return worker

        endpoint = await Endpoint.listen("127.0.0.1", port, tls, QuicSettings(), connected)
        worker = cls(endpoint)
        return worker

    @property
    def port(self) -> int:
        """Where it is dialled."""
        return self._endpoint.local_address[1]

    def on_stream(self, stream: Stream) -> TunnelledRequest:
        request = _Arriving(self)
        request.stream = stream
        return request

    def on_closed(self, error: ConnectionClosedError) -> None:
        if not self.closed.done():
            self.closed.set_result(error)

    def note(self, request: TunnelledRequest) -> None:
        if request.is_probe:
            self.probes.append(request)
            if self.answers_probes:
                request.answer(self.probe_status)
        else:
            self.requests.append(request)
        self._arrived.set()

    async def next_request(self) -> TunnelledRequest:
        async with asyncio.timeout(DEADLINE_S):
            while not self.requests:
                self._arrived.clear()
                await self._arrived.wait()
        return self.requests.pop(0)

    async def open(self) -> ScriptedStream:
        talk = ScriptedStream()
        talk.stream = await self.connection.open_stream(talk)
        return talk

    async def handshake(self, worker_id: str, token: str | None = None) -> tuple[bool, str]:
        """Say who we are on a fresh stream; the answer: accepted, reason."""
        talk = await self.open()
        talk.send(capnp.encode_handshake(worker_id, token), fin=True)
        return await answer_to(talk)

    async def why_closed(self) -> tuple[int | None, str]:
        error = await asyncio.wait_for(asyncio.shield(self.closed), DEADLINE_S)
        return error.error_code, error.reason

    async def close(self, error_code: int = 0, reason: str = "") -> None:
        await self._endpoint.close(error_code, reason)


async def answer_to(talk: ScriptedStream) -> tuple[bool, str]:
    """Wait for the router's answer on a handshake stream."""
    await talk.until(lambda t: t.fin or t.lost or t.reset)
    assert talk.fin, (talk.lost, talk.reset)
    ack = capnp.decode_handshake_ack(talk.received)
    return ack.accepted, ack.reason


class _Arriving(TunnelledRequest):
    """Tells its worker as soon as its head is there."""

    def __init__(self, worker: ScriptedWorker) -> None:
        super().__init__()
        self._worker = worker

    def on_head(self, head: RequestHead) -> None:
        super().on_head(head)
        self._worker.note(self)
