import asyncio

import pytest

from router.ports.tunnels import TunnelError
from router.tunnels.tunnel import Tunnel
from support.fake_quic import HEAD, FakeConnection, LineFraming, RecordingSink
from tunnel_protocol.errors import ConnectionClosedError, StreamCreditError
from tunnel_protocol.head import RequestHead


async def opened(*, end=False, connection=None):
    """An exchange just opened on a fake connection: (exchange, stream, sink, tunnel)."""
    connection = connection or FakeConnection()
    tunnel = Tunnel(connection, LineFraming(), "w1")
    sink = RecordingSink()
    exchange = await tunnel.open(HEAD, sink, end=end)
    return exchange, connection.streams[-1], sink, tunnel


def lost(stream):
    stream.handler.on_connection_lost(ConnectionClosedError(None, "idle timeout", by_peer=False))


async def test_the_head_is_the_first_thing_on_the_stream():
    _, stream, _, _ = await opened()
    assert stream.sent == b"HPOST /v1/chat/completions\n"
    assert not stream.fin


async def test_a_request_without_body_ends_with_its_head():
    _, stream, _, _ = await opened(end=True)
    assert stream.fin


async def test_pieces_of_a_response_reach_the_sink_within_the_call_that_delivers_them():
    _, stream, sink, _ = await opened(end=True)
    stream.handler.on_data(b"H200\nBone\nBt", False)
    assert sink.events == [200, b"one"]
    stream.handler.on_data(b"wo\n", False)
    assert sink.events == [200, b"one", b"two"]
    stream.handler.on_data(b"", True)
    assert sink.events == [200, b"one", b"two", "end"]
    assert stream.calls == []


async def test_upload_goes_on_beside_the_response():
    exchange, stream, sink, tunnel = await opened()
    stream.handler.on_data(b"H200\n", False)
    assert exchange.send_body(b"a")
    exchange.end_body()
    stream.handler.on_data(b"", True)
    assert stream.sent.endswith(b"Ba\n")
    assert stream.fin
    assert sink.events == [200, "end"]
    assert tunnel.running == 0


async def test_a_full_send_buffer_holds_the_upload_until_the_stream_is_writable():
    exchange, stream, sink, _ = await opened()
    stream.writable = False
    assert exchange.send_body(b"a") is False
    stream.handler.on_writable()
    assert sink.events == ["writable"]


async def test_an_empty_piece_of_body_is_not_sent():
    exchange, stream, _, _ = await opened()
    before = stream.sent
    assert exchange.send_body(b"")
    assert stream.sent == before


async def test_cancelling_abandons_both_directions_and_silences_the_sink():
    exchange, stream, sink, tunnel = await opened()
    exchange.cancel()
    exchange.cancel()
    assert stream.calls == ["reset 0", "stop 0"]
    assert tunnel.running == 0
    lost(stream)
    assert sink.events == []


async def test_cancelling_from_within_a_callback_stops_the_delivery_of_the_rest_of_the_piece():
    exchange, stream, sink, tunnel = await opened(end=True)
    sink.react = lambda event: exchange.cancel() if event == 503 else None
    stream.handler.on_data(b"H503\nBbody\n", True)
    assert sink.events == [503]
    assert tunnel.running == 0


async def test_cancelling_after_the_end_does_nothing():
    exchange, stream, _, _ = await opened(end=True)
    stream.handler.on_data(b"H200\n", True)
    exchange.cancel()
    assert stream.calls == []


async def test_an_aborted_upload_resets_the_request_and_leaves_the_response_alone():
    exchange, stream, sink, tunnel = await opened()
    exchange.abort_upload()
    assert exchange.send_body(b"dropped")
    exchange.end_body()
    assert stream.calls == ["reset 0"]
    stream.handler.on_data(b"H200\nBx\n", True)
    assert sink.events == [200, b"x", "end"]
    assert tunnel.running == 0


async def test_aborting_a_finished_upload_has_no_effect():
    exchange, stream, _, _ = await opened()
    exchange.end_body()
    exchange.abort_upload()
    assert stream.calls == []


async def test_a_protocol_error_costs_this_stream_only_and_what_was_complete_arrives_before():
    _, stream, sink, tunnel = await opened()
    stream.handler.on_data(b"H200\nBok\n?bad\nBmore\n", False)
    assert sink.events == [200, b"ok", "failed"]
    assert sink.error.reason == "unknown line"
    assert stream.calls == ["reset 0", "stop 0"]
    assert tunnel.running == 0
    assert not tunnel.closed


async def test_an_end_inside_a_message_is_a_failure_and_never_a_clean_end():
    _, stream, sink, _ = await opened(end=True)
    stream.handler.on_data(b"H200\nBhal", True)
    assert sink.events == [200, "failed"]


async def test_a_reset_by_the_worker_fails_the_exchange_and_aborts_the_upload():
    _, stream, sink, tunnel = await opened()
    stream.handler.on_data(b"H200\n", False)
    stream.handler.on_reset(0)
    assert sink.events == [200, "failed"]
    assert "reset 0" in stream.calls
    assert tunnel.running == 0


async def test_loss_of_the_tunnel_in_the_middle_of_a_response_is_a_failure():
    _, stream, sink, tunnel = await opened(end=True)
    stream.handler.on_data(b"H200\nBx\n", False)
    lost(stream)
    assert sink.events == [200, b"x", "failed"]
    assert "connection to inference server 'w1' is closed" in sink.error.reason
    assert tunnel.running == 0


async def test_loss_of_the_tunnel_after_the_response_ends_a_running_upload_without_a_failure():
    exchange, stream, sink, tunnel = await opened()
    stream.handler.on_data(b"H200\n", True)
    assert tunnel.running == 1
    lost(stream)
    assert sink.events == [200, "end", "stopped"]
    assert exchange.send_body(b"x")
    assert tunnel.running == 0


async def test_stop_sending_ends_the_upload_but_an_answer_may_still_come():
    exchange, stream, sink, _ = await opened()
    stream.handler.on_stop(0)
    assert sink.events == ["stopped"]
    assert exchange.send_body(b"dropped")
    assert b"dropped" not in stream.sent
    stream.handler.on_data(b"H400\n", True)
    assert sink.events == ["stopped", 400, "end"]


async def test_trailers_end_the_response_and_stop_the_rest_of_the_stream():
    _, stream, sink, tunnel = await opened(end=True)
    stream.handler.on_data(b"H200\nT\nBlate\n", False)
    assert sink.events == [200, "end"]
    assert stream.calls == ["stop 0"]
    assert tunnel.running == 0


async def test_pausing_and_resuming_reach_the_stream_while_a_response_is_running():
    exchange, stream, _, _ = await opened(end=True)
    exchange.pause()
    exchange.resume()
    assert stream.calls == ["pause", "resume"]
    stream.handler.on_data(b"H200\n", True)
    exchange.pause()
    assert stream.calls == ["pause", "resume"]


async def test_a_request_counts_as_accepted_once_all_of_it_is_acknowledged():
    exchange, stream, sink, _ = await opened()
    stream.acked = True
    assert not exchange.upload_acknowledged()
    exchange.end_body()
    assert exchange.upload_acknowledged()
    stream.handler.on_reset(0)
    assert sink.error.accepted


async def test_a_failure_before_the_request_was_acknowledged_is_not_accepted():
    _, stream, sink, _ = await opened(end=True)
    stream.handler.on_reset(0)
    assert not sink.error.accepted


async def test_a_head_that_cannot_be_expressed_fails_before_a_stream_is_opened():
    connection = FakeConnection()
    tunnel = Tunnel(connection, LineFraming(), "w1")
    head = RequestHead(b"POST", b"/", [(b"x", b"caf\xe9")])
    with pytest.raises(TunnelError, match="failed to send request head: non-ASCII"):
        await tunnel.open(head, RecordingSink(), end=True)
    assert connection.streams == []
    assert tunnel.running == 0


async def test_opening_on_a_closed_connection_fails_at_once():
    connection = FakeConnection()
    connection.closed = True
    tunnel = Tunnel(connection, LineFraming(), "w1")
    with pytest.raises(TunnelError, match="connection to inference server 'w1' is closed"):
        await tunnel.open(HEAD, RecordingSink(), end=True)
    assert tunnel.running == 0


async def test_a_connection_lost_before_the_opener_resumes_fails_the_opening_and_not_the_sink():
    connection = FakeConnection()
    connection.before_return = lost
    tunnel = Tunnel(connection, LineFraming(), "w1")
    sink = RecordingSink()
    with pytest.raises(TunnelError, match="is closed"):
        await tunnel.open(HEAD, sink, end=True)
    assert sink.events == []
    assert tunnel.running == 0


@pytest.mark.loop("virtual")
async def test_a_released_tunnel_closes_when_its_last_exchange_ends():
    connection, sink = FakeConnection(), RecordingSink()
    tunnel = Tunnel(connection, LineFraming(), "w1")
    await tunnel.open(HEAD, sink, end=True)
    tunnel.release()
    assert not tunnel.closed
    connection.streams[0].handler.on_data(b"H200\nBx\n", True)
    assert sink.events == [200, b"x", "end"]
    assert connection.closes == [(0, "")]
    await asyncio.sleep(10)
    assert connection.pings == 1


@pytest.mark.loop("virtual")
async def test_a_quiet_response_on_a_released_tunnel_lives_as_long_as_its_worker():
    connection = FakeConnection()
    tunnel = Tunnel(connection, LineFraming(), "w1")
    await tunnel.open(HEAD, RecordingSink(), end=True)

    def acknowledge():
        connection.last_received_at = asyncio.get_running_loop().time()

    connection.ping = acknowledge
    tunnel.release()
    await asyncio.sleep(120)
    assert connection.closes == []
    connection.ping = lambda: None
    await asyncio.sleep(7)
    assert connection.closes == [(0, "silent")]


def test_an_idle_tunnel_closes_as_soon_as_it_is_released():
    tunnel = Tunnel(FakeConnection(), LineFraming(), "w1")
    tunnel.release()
    tunnel.release()
    assert tunnel.connection.closes == [(0, "")]


async def test_an_exchange_that_is_over_forgets_its_sink():
    exchange, stream, sink, _ = await opened(end=True)
    stream.handler.on_data(b"H200\n", True)
    stream.handler.on_data(b"B?\n", False)
    exchange.cancel()
    assert sink.events == [200, "end"]


async def test_a_full_queue_for_stream_credit_refuses_at_once():
    connection = FakeConnection()

    async def full(_):
        raise StreamCreditError(1024)

    connection.open_stream = full
    tunnel = Tunnel(connection, LineFraming(), "w1")
    with pytest.raises(TunnelError, match="1024 requests already wait"):
        await tunnel.open(HEAD, RecordingSink(), end=True)
    assert tunnel.running == 0
