"""The gRPC server of the router, called by the gRPC library and by peers that do something else."""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import h2.events
import h2.settings
import pytest
from structlog.testing import capture_logs

from certs import make_self_signed
from router.grpc import frames, http2_connection, server_connection
from router.grpc.call import WRITE_AHEAD, Call, framed
from router.grpc.frames import Flood
from router.grpc.server import GrpcServer, GrpcTls
from router.grpc.server_connection import UNSENT_FRAMES, ServerConnection
from router.grpc.status import CallError, Status
from support.http2_peer import Peer, trusting
from support.waiting import DEADLINE_S, eventually
from tunnel_protocol.control.grpc_options import CONNECTION_STREAMS, MESSAGE, METADATA, channel_options

CLIENT = frames.PREFACE + frames.settings({})


class Service:
    """Methods as a test needs them."""

    def __init__(self) -> None:
        self.metadata: list[tuple[str, str | bytes]] = []
        self.peers: list[str] = []
        self.cancelled = 0
        self.calls: list[Call] = []
        self.written = 0
        self.floods: list[Flood] = []

    async def echo(self, call: Call) -> None:
        self.metadata = call.metadata
        self.peers.append(call.peer)
        await call.write((await call.read())[:10])

    async def hang(self, call: Call) -> None:
        self.calls.append(call)
        call.send_initial_metadata()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise

    async def refuse(self, call: Call) -> None:
        await call.read()
        raise CallError(Status.INVALID_ARGUMENT, "as asked: é")

    async def break_down(self, _call: Call) -> None:
        raise ZeroDivisionError

    async def flood(self, call: Call) -> None:
        self.calls.append(call)
        while True:
            await call.write(bytes(10_000))
            self.written += 1


@asynccontextmanager
async def serving(host: str = "127.0.0.1") -> AsyncIterator[tuple[GrpcServer, Service]]:
    service = Service()
    server = GrpcServer(on_flood=service.floods.append)
    server.bind(f"{host}:0")
    methods = {"Echo": service.echo, "Hang": service.hang, "Refuse": service.refuse, "Break": service.break_down}
    server.add_service("x", {**methods, "Flood": service.flood})
    await server.start()
    try:
        yield server, service
    finally:
        await server.close()


async def status(call: Any) -> tuple[grpc.StatusCode, str]:
    async with asyncio.timeout(DEADLINE_S):
        return await call.code(), await call.details()


@pytest.mark.loop("grpc")
async def test_calls_end_as_their_handlers_say() -> None:
    async with serving() as (server, service), grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        metadata = (("a", "1"), ("b-bin", b"\0\xff"))
        assert await channel.unary_unary("/x/Echo")(b"0123456789abc", metadata=metadata) == b"0123456789"
        assert set(metadata) <= set(service.metadata)
        assert service.peers[0].startswith("ipv4:127.0.0.1:")
        assert await status(channel.unary_unary("/x/Refuse")(b"")) == (
            grpc.StatusCode.INVALID_ARGUMENT,
            "as asked: é",
        )
        assert await status(channel.unary_unary("/x/None")(b"")) == (
            grpc.StatusCode.UNIMPLEMENTED,
            "unknown method /x/None",
        )
        with capture_logs() as logs:
            code, text = await status(channel.unary_unary("/x/Break")(b""))
        assert (code, text) == (grpc.StatusCode.UNKNOWN, "Unexpected ZeroDivisionError")
        assert [line["event"] for line in logs] == ["a gRPC call failed"]

        async def nothing() -> AsyncIterator[bytes]:
            for never in ():
                yield never

        assert (await status(channel.stream_unary("/x/Echo")(nothing())))[0] is grpc.StatusCode.INTERNAL


@pytest.mark.loop("grpc")
async def test_a_call_whose_deadline_passes_or_that_is_cancelled_ends_its_handler() -> None:
    async with serving() as (server, service), grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        assert (await status(channel.unary_unary("/x/Hang")(b"", timeout=0.05)))[0] is grpc.StatusCode.DEADLINE_EXCEEDED
        await eventually(lambda: service.cancelled == 1)
        call = channel.unary_stream("/x/Hang")(b"")
        await call.initial_metadata()
        call.cancel()
        await eventually(lambda: service.cancelled == 2)


async def test_the_server_ends_a_call_whose_caller_waits_no_longer() -> None:
    async with serving() as (server, service):
        peer = await Peer.connect(server.port)
        stream_id = peer.request(b"/x/Hang", **{"grpc-timeout": "20m"})
        assert await peer.status(stream_id) == ("4", "Deadline Exceeded")
        await eventually(lambda: service.cancelled == 1)
        peer.close()


@pytest.mark.loop("grpc")
async def test_a_message_beyond_the_limit_ends_its_call() -> None:
    async with serving() as (server, _):
        options = [("grpc.max_send_message_length", -1), ("grpc.absolute_max_metadata_size", 1 << 20)]
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}", options=options) as channel:
            most = MESSAGE.bytes or 0
            assert await channel.unary_unary("/x/Echo")(bytes(most)) == bytes(10)
            assert (await status(channel.unary_unary("/x/Echo")(bytes(most + 1))))[
                0
            ] is grpc.StatusCode.RESOURCE_EXHAUSTED
            for size, code in ((31_000, grpc.StatusCode.OK), (70_000, grpc.StatusCode.RESOURCE_EXHAUSTED)):
                found = channel.unary_unary("/x/Echo")(b"", metadata=(("k", "x" * size),))
                assert (await status(found))[0] is code
            assert (METADATA.bytes or 0) == 65_536


@pytest.mark.loop("grpc")
async def test_compressed_messages_are_refused_as_the_reference_refuses_them() -> None:
    async with (
        serving() as (server, _),
        grpc.aio.insecure_channel(
            f"127.0.0.1:{server.port}", options=channel_options(), compression=grpc.Compression.Gzip
        ) as channel,
    ):
        assert (await status(channel.unary_unary("/x/Echo")(b"x" * 1_000)))[0] is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.loop("grpc")
async def test_a_drain_lets_calls_end_and_cancels_those_that_do_not() -> None:
    async with serving() as (server, service), grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        call = channel.unary_stream("/x/Hang")(b"")
        await call.initial_metadata()
        assert await server.stop(0.05) is False
        assert await status(call) == (grpc.StatusCode.UNAVAILABLE, "the server is stopping")
        assert service.cancelled == 1
        async with asyncio.timeout(DEADLINE_S):
            await server.wait()
        await eventually(lambda: not server._connections)


async def test_of_several_messages_in_a_call_that_has_one_the_first_counts() -> None:
    async with serving() as (server, _):
        peer = await Peer.connect(server.port)
        stream_id = peer.request(b"/x/Echo")
        peer.h2.send_data(stream_id, framed(b"one") + framed(b"two"))
        peer.flush()
        assert (await peer.next(h2.events.DataReceived)).data == framed(b"one")
        trailers = await peer.next(h2.events.TrailersReceived)
        assert dict(trailers.headers)["grpc-status"] == "0"
        peer.close()


async def test_calls_come_in_over_ipv6() -> None:
    server, service = GrpcServer(), Service()
    server.add_service("x", {"Echo": service.echo})
    port = server.bind("[::1]:0")
    await server.start()
    try:
        reader, writer = await asyncio.open_connection("::1", port)
        peer = Peer(reader, writer, client=True)
        peer.h2.send_data(peer.request(b"/x/Echo"), framed(b"one"))
        peer.flush()
        assert (await peer.next(h2.events.DataReceived)).data == framed(b"one")
        assert service.peers[0].startswith("ipv6:[::1]:")
        peer.close()
    finally:
        await server.close()


async def test_a_connection_whose_handshake_ends_after_the_stop_is_told_to_go_away() -> None:
    identity = make_self_signed(["localhost"])
    server = GrpcServer(tls=GrpcTls(cert_pem=identity.cert_pem, key_pem=identity.key_pem))
    server.bind("127.0.0.1:0")
    await server.start()
    trust = trusting(identity)
    trust.check_hostname = False
    with socket.create_connection(("127.0.0.1", server.port)) as late:
        early = await Peer.connect(server.port, trust)  # connections are accepted one after another
        assert await server.stop(1.0) is True
        peer = Peer(
            *await asyncio.open_connection(sock=late.dup(), ssl=trust, server_hostname="localhost"), client=True
        )
        await peer.next(h2.events.ConnectionTerminated)
        peer.close()
        early.close()
    await server.close()


async def test_an_identity_that_cannot_be_used_is_refused_and_the_last_one_stays() -> None:
    identity, other = make_self_signed(["localhost"]), make_self_signed(["localhost"])
    server = GrpcServer(tls=GrpcTls(cert_pem=identity.cert_pem, key_pem=identity.key_pem))
    server.bind("127.0.0.1:0")
    await server.start()
    with pytest.raises(ssl.SSLError):
        server.replace_tls(GrpcTls(cert_pem=identity.cert_pem, key_pem=other.key_pem))
    trust = trusting(identity)
    trust.check_hostname = False
    peer = await Peer.connect(server.port, trust)
    await peer.next(h2.events.RemoteSettingsChanged)
    peer.close()
    await server.close()


@pytest.mark.loop("virtual")
async def test_a_caller_that_says_nothing_is_closed_after_ten_seconds() -> None:
    async with serving() as (server, _):
        with socket.create_connection(("127.0.0.1", server.port)) as silent:
            silent.setblocking(False)
            await asyncio.sleep(9)
            assert len(server._connections) == 1
            await asyncio.sleep(5)
            assert server._connections == set()
            assert silent.recv(1_000) != b""  # SETTINGS
            assert silent.recv(1_000) == b""


async def test_answers_wait_for_a_socket_that_is_full_and_go_on_when_it_is_read() -> None:
    async with serving() as (server, service):
        listener = server._sock
        assert listener is not None
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4_096)
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        sock.connect(("127.0.0.1", server.port))
        peer = Peer(*await asyncio.open_connection(sock=sock, limit=1_000), client=True)
        peer.h2.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: frames.MAX_WINDOW})
        peer.h2.increment_flow_control_window(frames.MAX_WINDOW - frames.DEFAULT_WINDOW)
        peer.request(b"/x/Flood")
        await eventually(lambda: bool(service.calls) and not service.calls[0].writable)
        held = service.written
        for _ in range(100):
            await asyncio.sleep(0)
        assert service.written <= held + 1
        received = 0
        while received < 1_000_000:
            received += len((await peer.next(h2.events.DataReceived)).data)
        assert service.written > held
        peer.close()


async def test_a_server_that_is_not_bound_does_not_start() -> None:
    server = GrpcServer()
    with pytest.raises(RuntimeError, match="not bound"):
        await server.start()
    await server.close()


@pytest.mark.parametrize(
    ("change", "answer"),
    [
        ({":method": "GET"}, "405"),
        ({"content-type": "text/plain"}, "415"),
    ],
)
async def test_what_is_no_call_is_answered_in_http(change: dict[str, str], answer: str) -> None:
    async with serving() as (server, _):
        peer = await Peer.connect(server.port)
        fields = {":method": "POST", ":scheme": "http", ":path": "/x/Echo", ":authority": "r"}
        peer.h2.send_headers(1, list({**fields, "content-type": "application/grpc", **change}.items()))
        peer.flush()
        response = await peer.next(h2.events.ResponseReceived)
        assert dict(response.headers) == {":status": answer}
        peer.close()


async def test_a_malformed_head_resets_its_stream_only() -> None:
    async with serving() as (server, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(CLIENT + frames.frame(frames.HEADERS, frames.END_HEADERS, 1, b"\x82"))
        async with asyncio.timeout(DEADLINE_S):
            received = b""
            while frames.reset(1, frames.ErrorCode.PROTOCOL_ERROR) not in received:
                received += await reader.read(1_000)
        writer.transport.abort()


async def test_a_peer_that_breaks_a_rule_is_told_and_closed() -> None:
    async with serving() as (server, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"GET / HTTP/1.1\r\n\r\n" + bytes(100))
        async with asyncio.timeout(DEADLINE_S):
            received = await reader.read()
        assert received.endswith(b"no HTTP/2 preface")
        writer.transport.abort()


async def test_streams_beyond_the_limit_are_announced_and_refused() -> None:
    async with serving() as (server, _):
        peer = await Peer.connect(server.port)
        await peer.next(h2.events.RemoteSettingsChanged)
        assert peer.h2.remote_settings.max_concurrent_streams == CONNECTION_STREAMS.pieces
        peer.close()


async def test_a_caller_that_does_not_read_holds_its_own_call_up() -> None:
    async with serving() as (server, service):
        peer = await Peer.connect(server.port)
        peer.request(b"/x/Flood", te="trailers")
        peer.h2.send_data(1, b"", end_stream=True)
        peer.flush()
        most = ((WRITE_AHEAD.bytes or 0) + 65_535) // 10_005
        await eventually(lambda: service.written >= most - 1)
        for _ in range(100):
            await asyncio.sleep(0)
        assert service.written <= most + 1
        held = service.written
        await peer.next(h2.events.DataReceived)
        peer.h2.increment_flow_control_window(40_000, 1)
        peer.h2.increment_flow_control_window(40_000)
        peer.flush()
        await eventually(lambda: service.written > held)
        peer.close()
        await eventually(lambda: service.calls[0].over)


async def test_a_peer_that_causes_answers_and_does_not_read_them_is_cut_off() -> None:
    async with serving() as (server, service):
        listener = server._sock
        assert listener is not None
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4_096)
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        sock.connect(("127.0.0.1", server.port))
        reader, writer = await asyncio.open_connection(sock=sock, limit=1)
        # Calls of an unknown method are answered with its name, here of 1,900 characters, which one byte stands for.
        path = b"\x44\x7f\xed\x0d/" + b"m" * 1_899
        first, others = b"\x83\x86" + path + b"\x5f\x10application/grpc", b"\x83\x86\xbf\xbe"
        end = frames.END_HEADERS | frames.END_STREAM
        calls = (
            frames.frame(frames.HEADERS, end, 2 * number + 1, others if number else first) for number in range(9_000)
        )
        writer.write(CLIENT + b"".join(calls))
        await eventually(lambda: service.floods == [Flood.UNSENT_FRAMES])
        await eventually(lambda: not server._connections)
        writer.transport.abort()
        del reader


@pytest.mark.parametrize(
    ("sent", "limit"),
    [
        (frames.frame(frames.PING, 0, 0, bytes(8)) * 1_100, Flood.CONTROL_FRAMES),
        (
            frames.frame(frames.HEADERS, 0, 1, b"\x82") + frames.frame(frames.CONTINUATION, 0, 1, b"") * 100,
            Flood.HEADER_BLOCK,
        ),
        (frames.frame(frames.PING, 0, 0, bytes(7)), None),
    ],
)
async def test_a_connection_that_is_closed_for_a_flood_is_told_once(sent: bytes, limit: Flood | None) -> None:
    async with serving() as (server, service):
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(CLIENT + sent)
        async with asyncio.timeout(DEADLINE_S):
            while await reader.read(65_536):
                pass
        writer.transport.abort()
        await eventually(lambda: not server._connections)
    assert service.floods == ([] if limit is None else [limit])


class Still:
    """A transport that remembers what is done with it."""

    def __init__(self) -> None:
        self.written = b""
        self.ended = ""
        self.reading = True
        self.unsent = 0

    def get_extra_info(self, _name: str) -> object:
        return None

    def write(self, data: bytes) -> None:
        self.written += data

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def abort(self) -> None:
        self.ended = "aborted"

    def close(self) -> None:
        self.ended = self.ended or "closed"


class NoCalls:
    def __init__(self) -> None:
        self.floods: list[Flood] = []
        self.begun: list[Call] = []

    def opened(self, connection: ServerConnection) -> None: ...

    def closed(self, connection: ServerConnection) -> None: ...

    def begin(self, call: Call, head: Any) -> None:
        self.begun.append(call)

    def over(self, call: Call) -> None: ...

    def flooded(self, limit: Flood) -> None:
        self.floods.append(limit)


@pytest.fixture
def connected() -> Callable[[], tuple[ServerConnection, Still]]:
    def connect() -> tuple[ServerConnection, Still]:
        connection, transport = ServerConnection(NoCalls()), Still()
        connection.connection_made(transport)  # type: ignore[arg-type]
        return connection, transport

    return connect


PING = frames.frame(frames.PING, 0, 0, b"liveness")


@pytest.mark.loop("virtual")
async def test_a_silent_peer_is_pinged_and_closed_if_it_does_not_answer(connected: Any) -> None:
    connection, transport = connected()
    loop = asyncio.get_running_loop()
    connection.data_received(CLIENT)
    for answer in (True, False):
        for second in range(1, 10):
            await asyncio.sleep(1)
            connection.check(loop.time())
            assert PING not in transport.written, second
        await asyncio.sleep(1.1)
        connection.check(loop.time())
        await asyncio.sleep(0)
        assert transport.written.endswith(PING)
        transport.written = b""
        if answer:
            connection.data_received(frames.frame(frames.PING, frames.ACK, 0, b"liveness"))
    await asyncio.sleep(19)
    connection.check(loop.time())
    assert transport.ended == ""
    await asyncio.sleep(1.1)
    connection.check(loop.time())
    assert transport.ended == "aborted"
    connection.data_received(b"late")
    connection.connection_lost(None)
    connection.abort()


@pytest.mark.loop("virtual")
async def test_a_peer_that_does_not_finish_its_preface_is_closed(connected: Any) -> None:
    connection, transport = connected()
    for byte in frames.PREFACE[:9]:
        await asyncio.sleep(1)
        connection.data_received(bytes((byte,)))
        connection.check(asyncio.get_running_loop().time())
    assert transport.ended == ""
    await asyncio.sleep(1.1)
    connection.check(asyncio.get_running_loop().time())
    assert transport.ended == "aborted"


@pytest.mark.loop("virtual")
async def test_a_connection_that_is_told_to_go_away_closes_with_its_last_call(connected: Any) -> None:
    connection, transport = connected()
    connection.data_received(CLIENT)
    head = [frames.frame(frames.HEADERS, frames.END_HEADERS, 1, block) for block in (HEAD_BLOCK,)]
    connection.data_received(b"".join(head))
    assert connection.streams == 1
    connection.go_away()
    assert transport.ended == ""
    connection.data_received(frames.reset(1, 8))
    assert transport.ended == "closed"
    await asyncio.sleep(20)
    assert transport.ended == "aborted"


@pytest.mark.loop("virtual")
async def test_a_flood_is_handled_in_turns_of_the_event_loop_and_nothing_is_read_meanwhile(connected: Any) -> None:
    connection, transport = connected()
    calls = 500
    flood = b"".join(
        frames.frame(frames.HEADERS, frames.END_HEADERS, 2 * number + 1, HEAD_BLOCK) + frames.reset(2 * number + 1, 8)
        for number in range(calls)
    )
    connection.data_received(CLIENT + flood)
    turns = 0
    while not transport.reading:
        turns += 1
        await asyncio.sleep(0)
        if turns == 3:
            connection.data_received(PING)  # a transport may have read it before
    assert 20 < turns < 200
    assert transport.written.endswith(frames.frame(frames.PING, frames.ACK, 0, b"liveness"))
    assert connection.streams == 0
    assert transport.ended == ""


@pytest.mark.loop("virtual")
async def test_a_flood_in_one_turn_ends_its_connection_which_is_read_no_more(
    connected: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http2_connection, "_CONTROL_FRAMES", 100)
    connection, transport = connected()
    connection.data_received(CLIENT + PING * 1_100)
    for _ in range(30):
        await asyncio.sleep(0)
    assert (transport.ended, transport.reading) == ("closed", False)


@pytest.mark.loop("virtual")
async def test_what_is_left_of_a_flood_is_dropped_with_its_connection(connected: Any) -> None:
    connection, transport = connected()
    with capture_logs() as logs:
        connection.data_received(CLIENT + PING * 5_000)
        for _ in range(30):
            await asyncio.sleep(0)
    assert (transport.ended, transport.reading) == ("closed", False)
    await asyncio.sleep(1.1)
    assert transport.ended == "aborted"
    assert [line["reason"] for line in logs] == ["too many frames that carry nothing of a call"]
    connection, transport = connected()
    connection.data_received(CLIENT + PING * 500)
    written = transport.written
    connection.connection_lost(None)
    await asyncio.sleep(0)
    assert (transport.written, transport.reading) == (written, False)


@pytest.mark.loop("virtual")
async def test_what_a_transport_had_read_of_a_flood_before_it_was_paused_may_end_the_connection(connected: Any) -> None:
    connection, transport = connected()
    connection.data_received(CLIENT + PING * 500)
    assert not transport.reading
    connection.data_received(b"\xff" * 9)
    for _ in range(10):
        await asyncio.sleep(0)
    assert (transport.ended, transport.reading) == ("closed", False)
    connection, transport = connected()
    connection.data_received(CLIENT + PING * 500)
    for _ in range(3):
        connection.data_received(PING * 250)
    assert (transport.ended, transport.reading) == ("closed", False)


@pytest.mark.loop("virtual")
async def test_an_answer_that_was_to_be_written_when_the_peer_left_is_dropped() -> None:
    calls, transport = NoCalls(), Still()
    connection = ServerConnection(calls)
    connection.connection_made(transport)  # type: ignore[arg-type]
    connection.data_received(CLIENT + frames.frame(frames.HEADERS, frames.END_HEADERS, 1, HEAD_BLOCK))
    calls.begun[0].write_now(b"x")
    written = transport.written
    connection.connection_lost(None)
    await asyncio.sleep(0)
    assert (transport.written, calls.begun[0].over) == (written, True)


@pytest.mark.loop("virtual")
@pytest.mark.parametrize(
    ("sent", "floods"),
    [([PING * 200] * 5, [Flood.CONTROL_FRAMES]), ([PING], [Flood.UNSENT_FRAMES]), ([b"\xff" * 9], [])],
)
async def test_a_connection_whose_peer_does_not_read_is_closed_at_once_for_one_reason(
    sent: list[bytes], floods: list[Flood]
) -> None:
    calls, transport = NoCalls(), Still()
    connection = ServerConnection(calls)
    connection.connection_made(transport)  # type: ignore[arg-type]
    connection.data_received(CLIENT)
    for piece in sent[:-1]:
        connection.data_received(piece)
    transport.unsent = (UNSENT_FRAMES.bytes or 0) + 1
    connection.data_received(sent[-1])
    assert (calls.floods, transport.ended) == (floods, "aborted")


HEAD_BLOCK = b"\x83\x86\x44\x07/x/Hang\x5f\x10application/grpc"


@pytest.mark.parametrize(
    ("address", "peer"),
    [
        (("10.0.0.1", 5), "ipv4:10.0.0.1:5"),
        (("::1", 5, 0, 0), "ipv6:[::1]:5"),
        (("::ffff:10.0.0.1", 5, 0, 0), "ipv4:10.0.0.1:5"),
        (None, "unknown"),
    ],
)
def test_peers_are_written_as_the_library_writes_them(address: object, peer: str) -> None:
    assert server_connection._peer_of(address) == peer
