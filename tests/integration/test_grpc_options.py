"""What every gRPC channel of ours has in common, and that our server follows no message with a PING."""

import asyncio

import h2.events

from router.grpc.server import GrpcServer
from support.http2_peer import Peer
from support.waiting import DEADLINE_S
from tunnel_protocol.control.grpc_options import channel_options


def test_the_bounds_are_arguments_of_channels() -> None:
    channel = dict(channel_options())
    waits = channel["grpc.keepalive_time_ms"] + channel["grpc.http2.ping_timeout_ms"]
    assert waits == channel["grpc.keepalive_time_ms"] + channel["grpc.keepalive_timeout_ms"] == 30_000
    assert channel["grpc.enable_http_proxy"] == 0


async def test_a_message_is_not_followed_by_a_ping() -> None:
    server = GrpcServer()
    port = server.bind("127.0.0.1:0")
    await server.start()
    peer = await Peer.connect(port)
    try:
        pinged = False
        for _ in range(3):
            call = peer.request(b"/grpc.health.v1.Health/Check", te="trailers")
            peer.h2.send_data(call, bytes(5), end_stream=True)
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
        await server.close()
