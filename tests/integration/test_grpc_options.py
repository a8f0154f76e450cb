"""What every gRPC channel and listener of ours has in common, seen from a peer."""

import asyncio
from typing import Any

import grpc
import h2.events
import pytest

from support.http2_peer import Peer
from support.waiting import DEADLINE_S
from tunnel_protocol.control.grpc_options import METADATA, channel_options, server_options

pytestmark = pytest.mark.loop("grpc")


class Echo(grpc.GenericRpcHandler):  # type: ignore[misc]  # untyped
    def service(self, _details: Any) -> Any:
        async def handle(request: bytes, _context: Any) -> bytes:
            return request[:1]

        return grpc.unary_unary_rpc_method_handler(handle)


async def ask(size: int = 1, metadata: tuple[tuple[str, str], ...] = ()) -> grpc.StatusCode:
    server = grpc.aio.server(options=server_options())
    server.add_generic_rpc_handlers((Echo(),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    # The caller has no bounds of its own.
    options = [("grpc.max_send_message_length", -1), ("grpc.absolute_max_metadata_size", 1 << 20)]
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
            await channel.unary_unary("/x/Y")(bytes(size), metadata=metadata, timeout=5)
            return grpc.StatusCode.OK
    except grpc.aio.AioRpcError as error:
        return error.code()
    finally:
        await server.stop(None)


async def test_a_message_beyond_the_limit_ends_its_call() -> None:
    assert await ask(4 << 20) is grpc.StatusCode.OK
    assert await ask((4 << 20) + 1) is grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize(("size", "code"), [(31_000, grpc.StatusCode.OK), (70_000, grpc.StatusCode.RESOURCE_EXHAUSTED)])
async def test_metadata_of_32_kib_passes_and_more_than_the_limit_ends_its_call(
    size: int, code: grpc.StatusCode
) -> None:
    assert (METADATA.bytes or 0) == 65_536
    for _ in range(10):  # a soft limit refuses by chance
        assert await ask(metadata=(("authorization", "x" * size),)) is code


def test_the_bounds_are_arguments_of_channels_and_servers() -> None:
    channel, server = dict(channel_options()), dict(server_options())
    assert server["grpc.max_concurrent_streams"] == 4_096
    for options in (channel, server):
        waits = options["grpc.keepalive_time_ms"] + options["grpc.http2.ping_timeout_ms"]
        assert waits == options["grpc.keepalive_time_ms"] + options["grpc.keepalive_timeout_ms"] == 30_000
    assert channel["grpc.enable_http_proxy"] == 0


async def test_a_message_is_not_followed_by_a_ping() -> None:
    server = grpc.aio.server(options=server_options())
    server.add_generic_rpc_handlers((Echo(),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    peer = await Peer.connect(port)
    try:
        pinged = False
        for _ in range(3):
            call = peer.request(b"/x/Y", te="trailers")
            peer.h2.send_data(call, b"\0" + (1).to_bytes(4) + b"x", end_stream=True)
            peer.flush()
            async with asyncio.timeout(DEADLINE_S):
                ended = False
                while not ended:
                    event = await peer.next(h2.events.Event)
                    pinged = pinged or isinstance(event, h2.events.PingReceived)
                    ended = isinstance(event, h2.events.StreamEnded)
        assert not pinged
    finally:
        peer.close()
        await server.stop(None)
