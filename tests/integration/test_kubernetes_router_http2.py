"""HTTP/2 of `stargate-k8s-router`: what peers may do to it, frame by frame."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import h2.config
import h2.connection
import h2.events
import pytest
from h2.errors import ErrorCodes
from h2.settings import SettingCodes

from kubernetes_router import grpc_listener
from kubernetes_router.grpc_listener import CALLS, CONNECTIONS, REGISTER, WATCH
from kubernetes_router.http2 import connection as http2
from kubernetes_router.http2.connection import RESETS, STREAM_WINDOW, UNSENT_FRAMES, Http2Connection
from kubernetes_router.targets import Target
from support.http2_peer import ROUTER_0, Peer, head
from support.kubernetes_router import Door, door
from support.transport import WrittenTransport
from support.waiting import DEADLINE_S, eventually
from tunnel_protocol.limit import Limit

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\x04\0" + bytes(4)
PING, PONG = (b"\0\0\x08\x06" + flags + bytes(4) + b"liveness" for flags in (b"\0", b"\x01"))


@asynccontextmanager
async def peers(at: Door, count: int = 1) -> AsyncIterator[list[Peer]]:
    found = [await Peer.connect(at.port) for _ in range(count)]
    try:
        yield found
    finally:
        for peer in found:
            peer.close()


class RawRouter:
    """Accepts one connection, and lets the test answer it."""

    def __init__(self) -> None:
        self.accepted: asyncio.Future[Peer] = asyncio.get_running_loop().create_future()
        self._server: asyncio.Server | None = None

    async def start(self) -> Target:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return Target("router-0", *self._server.sockets[0].getsockname(), 9)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted.set_result(Peer(reader, writer, client=False))

    async def peer(self) -> Peer:
        async with asyncio.timeout(DEADLINE_S):
            return await self.accepted

    def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        if self.accepted.done():
            self.accepted.result().close()


@asynccontextmanager
async def registered() -> AsyncIterator[tuple[Door, Peer, int, Peer, Any]]:
    """A worker's call that has reached a router: both peers, and the request as the router got it."""
    router = RawRouter()
    async with door() as at, peers(at) as (worker,):
        at.targets.publish([await router.start()])
        stream_id = worker.request(REGISTER, te="trailers", **{"x-some": "thing"})
        upstream = await router.peer()
        request = await upstream.next(h2.events.RequestReceived)
        yield at, worker, stream_id, upstream, request
        router.stop()


def limited(monkeypatch: pytest.MonkeyPatch, module: Any, name: str, pieces: int) -> None:
    monkeypatch.setattr(module, name, Limit(getattr(module, name).name, pieces=pieces))


# --- Requests ---------------------------------------------------------------------------------------------------------


async def test_calls_that_are_reset_with_their_first_frames_leave_the_others_alone() -> None:
    async with door() as at, peers(at) as (peer,):
        at.targets.publish([])
        data = b""
        for path in (WATCH, REGISTER, b"/other", WATCH):
            peer.h2.send_headers(stream_id := peer.h2.get_next_available_stream_id(), head(path))
            peer.h2.send_data(stream_id, b"body")
            peer.h2.reset_stream(stream_id)
            data += peer.h2.data_to_send()
        peer.writer.write(data)
        stream_id = peer.request(WATCH)
        assert (await peer.next(h2.events.DataReceived, stream_id)).data == bytes(5)
        await eventually(lambda: at.publisher.open == 1)


async def test_a_call_without_authority_is_refused() -> None:
    async with door() as at, peers(at) as (peer,):
        peer.h2.config.validate_outbound_headers = False
        found = await peer.status(peer.request(REGISTER, authority=None))
        assert found == ("3", "registration requires a target stargate authority")
        assert at.outcome("missing_authority") == 1


async def test_the_host_field_stands_in_for_the_authority() -> None:
    async with door() as at, peers(at) as (peer,):
        peer.h2.config.validate_outbound_headers = False
        found = await peer.status(peer.request(REGISTER, authority=None, host=ROUTER_0))
        assert found == ("14", "target stargate router-0 is not ready")


async def test_what_is_sent_before_the_router_is_connected_follows() -> None:
    router = RawRouter()
    async with door() as at, peers(at) as (worker,):
        at.targets.publish([await router.start()])
        worker.h2.send_headers(1, head(REGISTER))
        worker.h2.send_data(1, b"first", end_stream=True)
        worker.flush()
        upstream = await router.peer()
        assert (await upstream.next(h2.events.DataReceived)).data == b"first"
        await upstream.next(h2.events.StreamEnded)
        router.stop()


async def test_a_watch_that_is_read_slowly_skips_lists() -> None:
    async with door() as at, peers(at) as (worker,):
        worker.h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 0})
        stream_id = worker.request(WATCH)
        await worker.next(h2.events.ResponseReceived)
        for count in range(5):
            at.targets.publish([Target(f"router-{index}", "10.0.0.1", 1, 2) for index in range(count)])
        worker.h2.increment_flow_control_window(65_535, stream_id)
        worker.flush()
        received = b""
        while b"router-3" not in received:
            received += (await worker.next(h2.events.DataReceived, stream_id)).data
        assert received.startswith(bytes(5))
        assert received.count(b"router-0") == 2  # identity and address, in one list


async def test_a_call_that_begins_during_a_drain_is_refused_on_its_connection() -> None:
    async with door() as at, peers(at) as (worker,):
        worker.h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 0})
        watch = worker.request(WATCH)
        await worker.next(h2.events.ResponseReceived)
        at.targets.publish([])
        draining = asyncio.create_task(at.listener.drain())
        assert await worker.status(worker.request(REGISTER)) == ("14", "router is shutting down")
        worker.h2.increment_flow_control_window(65_535, watch)
        worker.flush()
        assert await worker.status(watch) == ("14", "router is shutting down")
        await worker.closed()
        await draining


async def test_what_is_no_grpc_is_not_served() -> None:
    async with door() as at, peers(at) as (peer,):
        stream_id = peer.request(WATCH, **{"content-type": "text/html"})
        response = await peer.next(h2.events.ResponseReceived, stream_id)
        assert [tuple(one) for one in response.headers] == [(":status", "415")]


async def test_the_router_gets_the_address_of_its_pod_as_authority_and_all_metadata() -> None:
    async with registered() as (at, _, _, _, request):
        (target,) = at.targets.sorted_by_pod_name()
        fields = dict(request.headers)
        assert fields[":authority"] == target.grpc_address
        assert fields[":path"] == REGISTER.decode()
        assert (fields["te"], fields["x-some"], fields["content-type"]) == ("trailers", "thing", "application/grpc")


async def test_metadata_that_http2_forbids_is_not_passed_on() -> None:
    router = RawRouter()
    async with door() as at, peers(at) as (peer,):
        at.targets.publish([await router.start()])
        peer.h2.config.validate_outbound_headers = False
        stream_id = peer.request(REGISTER, te="gzip")
        assert (await peer.next(h2.events.StreamReset, stream_id)).error_code == ErrorCodes.PROTOCOL_ERROR
        assert at.outcome("malformed") == 1
        router.stop()


async def test_bodies_pass_byte_by_byte_whatever_they_are() -> None:
    async with registered() as (_, worker, stream_id, upstream, request):
        worker.h2.send_data(stream_id, b"no grpc message", pad_length=9)
        worker.flush()
        assert (await upstream.next(h2.events.DataReceived)).data == b"no grpc message"
        worker.h2.end_stream(stream_id)
        worker.flush()
        await upstream.next(h2.events.StreamEnded)
        upstream.h2.send_headers(request.stream_id, [(":status", "200"), ("x-head", "1")])
        upstream.h2.send_data(request.stream_id, b"nor this", end_stream=True)
        upstream.flush()
        response = await worker.next(h2.events.ResponseReceived)
        assert [tuple(one) for one in response.headers] == [(":status", "200"), ("x-head", "1")]
        assert (await worker.next(h2.events.DataReceived)).data == b"nor this"
        await worker.next(h2.events.StreamEnded)


async def test_a_reset_of_the_router_reaches_the_worker_with_its_code() -> None:
    async with registered() as (at, worker, stream_id, upstream, request):
        upstream.h2.reset_stream(request.stream_id, ErrorCodes.REFUSED_STREAM)
        upstream.flush()
        assert (await worker.next(h2.events.StreamReset, stream_id)).error_code == ErrorCodes.REFUSED_STREAM
        assert at.outcome("target_lost") == 1


async def test_a_reset_of_the_worker_cancels_the_call_at_the_router() -> None:
    async with registered() as (at, worker, stream_id, upstream, _):
        worker.h2.reset_stream(stream_id, ErrorCodes.CANCEL)
        worker.flush()
        assert (await upstream.next(h2.events.StreamReset)).error_code == ErrorCodes.CANCEL
        await upstream.closed()
        assert at.outcome("worker_left") == 1


async def test_a_router_that_goes_away_may_finish_its_call() -> None:
    async with registered() as (at, worker, stream_id, upstream, request):
        goaway = b"\0\0\x08\x07\0" + bytes(4) + b"\x7f\xff\xff\xff" + bytes(4)
        upstream.writer.write(goaway[:5])
        upstream.writer.write(goaway[5:])
        upstream.h2.send_headers(request.stream_id, [(":status", "200")])
        upstream.h2.send_headers(request.stream_id, [("grpc-status", "0"), ("grpc-message", "")], end_stream=True)
        upstream.flush()
        assert await worker.status(stream_id) == ("0", "")
        assert at.outcome("completed") == 1


async def test_a_router_that_goes_away_with_an_error_is_lost() -> None:
    async with registered() as (_, worker, stream_id, upstream, _request):
        upstream.h2.close_connection(ErrorCodes.INTERNAL_ERROR)
        upstream.flush()
        assert await worker.status(stream_id) == ("14", "connection to stargate target lost")


async def test_trailers_of_a_worker_have_no_meaning() -> None:
    async with registered() as (_, worker, stream_id, upstream, _request):
        worker.h2.send_headers(stream_id, [("x-last", "1")], end_stream=True)
        worker.flush()
        await upstream.next(h2.events.StreamEnded)


# --- Bounds -----------------------------------------------------------------------------------------------------------


async def test_no_more_than_a_window_is_held_of_a_call() -> None:
    async with registered() as (_, worker, stream_id, upstream, request):
        # The router's own window is used up, so nothing of what follows is taken.
        size = 0
        while (window := min(worker.h2.local_flow_control_window(stream_id), 16_384)) > 0:
            worker.h2.send_data(stream_id, bytes(window))
            size += window
            worker.flush()
        assert size == STREAM_WINDOW.bytes
        received = 0
        while received < size:
            received += len((await upstream.next(h2.events.DataReceived)).data)
        assert upstream.h2.remote_flow_control_window(request.stream_id) == 0
        await worker.next(h2.events.WindowUpdated)  # it was passed on: as much again
        again = worker.h2.local_flow_control_window(stream_id)
        for start in range(0, again, 16_384):
            worker.h2.send_data(stream_id, bytes(min(16_384, again - start)))
        worker.flush()
        worker.h2.ping(b"12345678")
        worker.flush()
        await worker.next(h2.events.PingAckReceived)
        assert worker.h2.local_flow_control_window(stream_id) == 0
        upstream.h2.acknowledge_received_data(size, request.stream_id)
        upstream.flush()
        while received < size + again:
            received += len((await upstream.next(h2.events.DataReceived)).data)


async def test_calls_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    assert CALLS.pieces == 4_096
    limited(monkeypatch, grpc_listener, "CALLS", 2)
    async with door() as at, peers(at) as (peer,):
        first, _ = peer.request(WATCH), peer.request(WATCH)
        assert await peer.status(peer.request(WATCH)) == ("8", "too many calls")
        peer.h2.reset_stream(first)
        peer.flush()
        last = peer.request(WATCH)
        await peer.next(h2.events.ResponseReceived, last)


async def test_connections_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    assert CONNECTIONS.pieces == 2_048
    limited(monkeypatch, grpc_listener, "CONNECTIONS", 2)
    async with door() as at, peers(at, 2) as (first, second):
        for peer in (first, second):
            await peer.next(h2.events.SettingsAcknowledged)
        third = await Peer.connect(at.port)
        await third.closed()
        third.close()
        first.close()
        await eventually(lambda: "grpc_connections 1\n" in at.metrics.render().decode())


async def test_a_peer_that_resets_ever_more_streams_is_sent_away(monkeypatch: pytest.MonkeyPatch) -> None:
    assert RESETS.pieces == 4_096
    limited(monkeypatch, http2, "RESETS", 20)
    async with door() as at, peers(at) as (peer,):
        for _ in range(21):
            peer.h2.reset_stream(peer.request(WATCH))
            peer.flush()
        assert (await peer.next(h2.events.ConnectionTerminated)).error_code == ErrorCodes.ENHANCE_YOUR_CALM
        await peer.closed()


async def test_a_peer_that_causes_answers_and_does_not_read_is_cut_off() -> None:
    connection, transport = made()
    connection.data_received(PREFACE)
    transport.buffered = UNSENT_FRAMES.bytes or 0
    connection.data_received(PING)
    assert not transport.aborted
    transport.buffered += 1
    connection.data_received(PING)
    assert transport.aborted
    connection.connection_lost(None)


@pytest.mark.parametrize(
    "data", [b"GET / HTTP/1.1\r\n\r\n" + bytes(50), b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9)]
)
async def test_what_is_no_http2_is_closed(data: bytes) -> None:
    async with door() as at:
        reader, writer = await asyncio.open_connection("127.0.0.1", at.port)
        writer.write(data)
        async with asyncio.timeout(DEADLINE_S):
            await reader.read()
        writer.close()


# --- Liveness ---------------------------------------------------------------------------------------------------------


def made(**options: Any) -> tuple[Http2Connection, WrittenTransport]:
    connection, transport = Http2Connection(**options), WrittenTransport()
    connection.connection_made(transport)
    transport.written.clear()
    return connection, transport


@pytest.mark.loop("virtual")
async def test_a_silent_peer_is_pinged_and_given_up_without_an_answer() -> None:
    connection, transport = made()
    await asyncio.sleep(9.9)
    assert transport.written == []
    await asyncio.sleep(0.2)
    assert transport.written == [PING]
    await asyncio.sleep(19.8)
    assert not transport.aborted
    await asyncio.sleep(0.2)
    assert transport.aborted
    connection.connection_lost(None)


@pytest.mark.loop("virtual")
async def test_a_peer_that_answers_stays() -> None:
    connection, transport = made()
    connection.data_received(PREFACE)
    for _ in range(20):
        await asyncio.sleep(10.1)
        connection.data_received(PONG)
    assert not transport.aborted
    connection.connection_lost(None)


async def test_a_request_on_a_closed_connection_fails() -> None:
    connection, _ = made(client=True)
    connection.connection_lost(None)
    with pytest.raises(ConnectionResetError):
        connection.request([(b":method", b"POST")])
