"""What a connection does over time: timers, paths, keys, fairness, memory. In memory, on a virtual clock."""

import gc
import json
import tracemalloc

import pytest

from support.quic_simulation import CLIENT_ADDRESS, SimulatedNetwork, StreamRecorder, World, nothing_left
from tunnel_protocol.observers.line_writer import LineWriter
from tunnel_protocol.quic.key_phases import KEY_UPDATE_PACKETS
from tunnel_protocol.quic.settings import QuicSettings


class Echo(StreamRecorder):
    def on_data(self, data, fin):
        super().on_data(data, fin)
        self.stream.write(data, fin=fin)


def echo(stream):
    handler = Echo()
    handler.stream = stream
    return handler


def connected(weather=None, settings=None, server_settings=None, seed=1):
    settings = settings or QuicSettings()
    world = World(seed, weather or SimulatedNetwork(delay_s=0.005), settings, server_settings or settings).connect()
    world.server.accept = world.client.accept = echo
    return world


def exchange(node, data=b"hello"):
    recorder = StreamRecorder()
    recorder.stream = node.engine.open_stream(recorder)
    recorder.stream.write(data, fin=True)
    return recorder


def at_rest(world):
    return nothing_left(world.client.engine) and nothing_left(world.server.engine)


# --- timers ----------------------------------------------------------------------------------------------------------


def test_a_silent_connection_ends_after_the_idle_timeout_on_both_sides():
    world = connected()
    world.run(lambda: at_rest(world), 5)
    began = world.now
    world.run(lambda: world.client.error is not None and world.server.error is not None, 60)
    assert 29 < world.now - began < 32
    assert (world.client.error.error_code, world.client.error.reason) == (None, "idle timeout")


def test_the_smaller_idle_timeout_of_both_sides_counts():
    world = connected(settings=QuicSettings(idle_timeout_ms=5_000), server_settings=QuicSettings())
    world.run(lambda: world.server.error is not None, 8)


def test_keepalive_holds_an_idle_connection_open():
    world = connected(settings=QuicSettings(keepalive_ms=10_000), server_settings=QuicSettings())
    world.idle(300)
    assert world.client.error is None
    assert world.server.error is None


@pytest.mark.parametrize(("pause_s", "more"), [(6, 0), (25, 10 * 2 * 2)])
def test_keepalive_says_nothing_while_packets_come_anyway(pause_s, more):
    def datagrams(keepalive_ms):
        settings = QuicSettings(keepalive_ms=keepalive_ms)
        world = connected(settings=settings, server_settings=QuicSettings())
        for _ in range(10):
            assert exchange_completes(world)
            world.idle(pause_s)
        return world.datagrams

    assert datagrams(10_000) - datagrams(0) == more


def test_a_vanished_peer_is_given_up_after_the_set_number_of_probes():
    world = connected(settings=QuicSettings(max_consecutive_ptos=5))
    recorder = exchange(world.client)
    world.run(lambda: recorder.fin, 5)
    world.weather.loss = 1.0
    lost = exchange(world.client)
    began = world.now
    world.run(lambda: world.client.error is not None, 30)
    assert world.now - began < 6
    assert world.client.error.reason == "peer does not answer"
    assert lost.lost is world.client.error


def test_few_acknowledgements_are_sent_and_none_later_than_promised():
    world = connected()
    world.run(lambda: at_rest(world), 5)
    world.server.accept = lambda _: StreamRecorder()
    data = world.client.engine.open_stream(StreamRecorder())
    for _ in range(3):
        data.write(b"x")
        world.idle(0.001)
    began, sent = world.now, world.datagrams
    world.run(lambda: not world.client.engine.one_rtt.recovery.sent, 1)
    assert world.datagrams - sent == 1
    assert world.now - began < 0.005 + 0.025 + 0.005


# --- closing ---------------------------------------------------------------------------------------------------------


def test_a_lost_close_is_repeated_to_a_peer_that_goes_on_talking():
    world = connected()
    world.run(lambda: at_rest(world), 5)
    world.weather.drop = lambda sender, _: sender == "server"
    world.server.engine.shutdown(0, "shutdown")
    world.server.tick()
    world.weather.drop = None
    exchange(world.client)
    world.run(lambda: world.client.error is not None, 5)
    assert (world.client.error.error_code, world.client.error.reason) == (0, "shutdown")


# --- paths and keys --------------------------------------------------------------------------------------------------


def test_a_client_may_move_to_another_address_and_the_new_path_is_validated():
    world = connected()
    assert exchange_completes(world)
    world.client.address = ("192.0.2.77", 41_000)
    for _ in range(5):
        assert exchange_completes(world)
    assert world.server.engine.peer_address == ("192.0.2.77", 41_000)
    assert world.server.engine.one_rtt.paths.active.is_validated
    assert not world.server.engine.one_rtt.paths.busy


@pytest.mark.parametrize("seed", range(20))
def test_a_client_that_is_moved_while_it_has_nothing_to_say_is_found_again_by_its_keepalive(seed):
    """The server sends to where it was; only a word from the client can help, and one has to be enough."""
    weather = SimulatedNetwork(delay_s=0.005, loss=0.02)
    world = connected(weather, settings=QuicSettings(keepalive_ms=3_000), server_settings=QuicSettings(), seed=seed)
    assert exchange_completes(world)
    world.run(lambda: at_rest(world), 5)
    world.client.address = ("192.0.2.77", 41_000)
    lost = exchange(world.server, bytes(30_000))
    began = world.now
    world.run(lambda: lost.fin, 30)
    assert 2 < world.now - began < 3.5


def test_packets_with_a_stolen_address_do_not_move_the_connection():
    """Somebody who sends a copy of a packet from elsewhere wins nothing: that path never answers (RFC 9000 9.3.2)."""
    world = connected()
    world.run(lambda: at_rest(world), 5)
    stream = world.client.engine.open_stream(StreamRecorder())
    stream.write(b"x")
    (datagram, _, _), *_ = world.client.engine.poll(world.now)
    world.server.engine.receive(datagram, ("203.0.113.66", 6), world.now)
    world.server.tick()
    for _ in range(5):
        assert exchange_completes(world)
    world.idle(3)
    assert world.server.engine.peer_address == CLIENT_ADDRESS


def exchange_completes(world, size=3_000):
    recorders = [exchange(node, bytes(size)) for node in (world.client, world.server)]
    world.run(lambda: all(r.fin for r in recorders), 30)
    return all(r.received == bytes(size) for r in recorders)


def test_keys_are_updated_long_before_they_wear_out():
    world = connected(SimulatedNetwork(delay_s=0.005, loss=0.05, jitter_s=0.01))
    engine = world.client.engine
    assert exchange_completes(world)
    keys = engine.one_rtt.keys
    assert keys.phase == 0
    keys.sealed = KEY_UPDATE_PACKETS - 20
    for _ in range(20):
        assert exchange_completes(world)
    assert keys.phase == world.server.engine.one_rtt.keys.phase == 1
    assert keys.sealed < 1_000


def test_keys_may_be_updated_again_and_again_from_both_sides():
    world = connected(SimulatedNetwork(delay_s=0.005, loss=0.05, jitter_s=0.01))
    phases = []
    for turn in range(40):
        (world.client, world.server)[turn % 2].engine.one_rtt.keys.sealed = KEY_UPDATE_PACKETS
        assert exchange_completes(world)
        phases.append(world.client.engine.one_rtt.keys.phase)
    assert phases == [1, 0] * 20


def test_what_the_peer_sends_under_the_keys_before_an_update_is_still_read():
    """It does so until a packet under the new keys has reached it (RFC 9001 section 6.5)."""
    world = connected()
    assert exchange_completes(world)
    world.client.engine.one_rtt.keys.sealed = KEY_UPDATE_PACKETS
    exchange(world.client)
    world.weather.drop = lambda sender, _: sender == "client"
    incoming = StreamRecorder()
    world.client.accept = lambda _: incoming
    exchange(world.server, bytes(3_000))
    world.run(lambda: incoming.fin, 1)
    world.client.accept, world.weather.drop = echo, None
    assert exchange_completes(world)


def test_datagrams_grow_to_what_the_path_carries_and_shrink_when_it_shrinks():
    world = connected(SimulatedNetwork(delay_s=0.005, mtu=1_400))
    for _ in range(30):
        assert exchange_completes(world, 20_000)
    assert 1_380 <= world.client.engine.one_rtt.path_mtu.current <= 1_400
    world.weather.mtu = 1_200
    for _ in range(5):
        assert exchange_completes(world, 20_000)
    assert world.client.engine.one_rtt.path_mtu.current == 1_200
    assert world.client.error is None


def test_a_path_that_swallows_only_large_datagrams_is_noticed_although_small_ones_are_answered():
    world = connected(SimulatedNetwork(delay_s=0.005))
    for _ in range(5):
        assert exchange_completes(world, 20_000)
    assert world.client.engine.one_rtt.path_mtu.current == 1_452
    world.weather.mtu = 1_200
    bulk = exchange(world.client, bytes(100_000))
    began = world.now
    while world.client.engine.one_rtt.path_mtu.current > 1_200:
        exchange(world.client, b"small")
        world.idle(0.004)
        assert world.client.engine.one_rtt.recovery.pto_count < 2, "no probe timer had to say so"
        assert world.now - began < 2
    world.run(lambda: bulk.fin, 10)


def test_a_congestion_window_that_is_not_used_does_not_grow():
    """Or a connection that has only seen small exchanges would flood its path with the first large one (RFC 9002 7.8)."""
    world = connected()
    world.run(lambda: at_rest(world), 5)
    window = world.client.engine.one_rtt.congestion.window
    for _ in range(100):
        assert exchange_completes(world, 1_000)
    assert world.client.engine.one_rtt.congestion.window == window
    for _ in range(5):
        assert exchange_completes(world, 100_000)
    assert world.client.engine.one_rtt.congestion.window > 2 * window


def test_what_the_window_allows_leaves_evenly_over_the_round_trip():
    """Pacing (RFC 9002 section 7.7): not in one burst, and not only when the first acknowledgement comes."""
    world = connected(SimulatedNetwork(delay_s=0.2))
    for _ in range(8):
        assert exchange_completes(world, 200_000)
    world.run(lambda: at_rest(world), 5)
    world.server.accept = lambda _: StreamRecorder()
    stream = world.client.engine.open_stream(StreamRecorder())
    stream.write(bytes(150_000))
    world.idle(0.002)
    assert stream.send_half.unsent_bytes > 80_000
    world.idle(0.39)
    assert stream.send_half.unsent_bytes == 0


# --- flow, fairness, memory ------------------------------------------------------------------------------------------


def test_a_slow_reader_holds_its_own_stream_back_and_nobody_elses():
    world = connected()
    paused = []

    def accept(stream):
        handler = echo(stream)
        if not paused:
            paused.append(handler)
            stream.pause_reading()
        return handler

    world.server.accept = accept
    greedy = StreamRecorder()
    greedy.stream = world.client.engine.open_stream(greedy)
    assert not greedy.stream.write(bytes(4_000_000), fin=True)
    world.idle(2)
    stream = paused[0].stream
    assert len(stream.receive_half._inbox) == 1_250_000
    assert greedy.stream.send_half.unsent_bytes == 4_000_000 - 1_250_000
    for _ in range(20):
        assert exchange_completes(world)
    stream.resume_reading()
    world.run(lambda: greedy.fin, 60)
    assert len(greedy.received) == 4_000_000
    world.run(lambda: at_rest(world), 10)


def test_a_writer_goes_on_as_soon_as_sending_has_emptied_its_buffer():
    """And not when the next packet of the peer happens to arrive."""
    world = connected(SimulatedNetwork(delay_s=1), settings=QuicSettings(send_buffer_bytes=2_000))
    world.run(lambda: at_rest(world), 10)
    world.idle(5)
    writer = StreamRecorder()
    assert not world.client.engine.open_stream(writer).write(bytes(3_000))
    world.run(lambda: writer.writable == 1, 0.5)


def test_ninety_nine_small_streams_do_not_wait_for_a_greedy_one():
    world = connected(SimulatedNetwork(delay_s=0.005, bytes_per_s=5e6))
    greedy = exchange(world.client, bytes(5_000_000))
    world.idle(0.5)
    began = world.now
    small = [exchange(world.client, bytes(200)) for _ in range(99)]
    world.run(lambda: all(r.fin for r in small), 30)
    took = world.now - began
    assert not greedy.fin, "the greedy one is still at it"
    assert took < 0.2


def test_greedy_streams_share_evenly():
    world = connected(SimulatedNetwork(delay_s=0.005, bytes_per_s=5e6))
    received = {}

    def accept(stream):
        handler = StreamRecorder()
        handler.stream = stream
        received[stream.stream_id] = handler
        return handler

    world.server.accept = accept
    for _ in range(4):
        exchange(world.client, bytes(3_000_000))
    world.idle(0.5)
    sizes = sorted(len(handler.received) for handler in received.values())
    assert sizes[0] > 200_000
    assert sizes[-1] < 1.2 * sizes[0]


def test_stream_credit_is_renewed_and_a_blocked_opener_hears_of_it():
    world = connected(settings=QuicSettings(max_streams_bidi=4))
    done = []
    for _ in range(50):
        while world.client.engine.free_streams:
            done.append(exchange(world.client))
        assert world.client.engine.open_stream(StreamRecorder()) is None
        before = world.client.credit
        world.run(lambda before=before: world.client.credit > before, 5)
    world.run(lambda: all(r.fin for r in done), 5)
    assert world.server.engine.open_streams <= 4


def test_memory_is_flat_over_many_exchanges():
    """To the byte; test_quic_soak.py has the long run."""
    world = connected(SimulatedNetwork(delay_s=0.001, loss=0.01))

    def run(count):
        for _ in range(count // 20):
            recorders = [exchange(world.client, bytes(300)) for _ in range(20)]
            world.run(lambda recorders=recorders: all(r.fin for r in recorders), 30)
        world.run(lambda: at_rest(world), 30)

    run(1_000)
    gc.collect()
    tracemalloc.start()
    run(500)
    gc.collect()
    before, _ = tracemalloc.get_traced_memory()
    run(3_000)
    gc.collect()
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert after - before < 60_000


def test_exchanges_leave_no_cycles_behind():
    world = connected()
    for _ in range(3):
        assert exchange_completes(world)
    world.run(lambda: at_rest(world), 5)
    gc.collect()
    gc.disable()
    try:
        for _ in range(20):
            assert exchange_completes(world)
        world.run(lambda: at_rest(world), 5)
        assert not [o for o in gc.get_objects() if type(o).__name__ == "BidirectionalStream"]
    finally:
        gc.enable()


# --- looking inside --------------------------------------------------------------------------------------------------


def test_qlog_and_key_log_on_request(tmp_path):
    keys = LineWriter(tmp_path / "keys", str, name="keys")
    settings = QuicSettings(qlog_dir=tmp_path / "qlog", key_log=keys)
    world = connected(settings=settings)
    assert exchange_completes(world, 30_000)
    world.client.engine.shutdown(0, "")
    world.client.tick()
    world.run(lambda: world.client.engine.finished and world.server.engine.finished, 60)
    world.client_factory.close()
    world.server_factory.close()
    assert keys.close(20)
    traces = list((tmp_path / "qlog").iterdir())
    assert traces
    text = json.dumps(json.loads(traces[0].read_text()))
    for word in ("stream", "packet_sent", "packet_received", "connection_close"):
        assert word in text
    lines = (tmp_path / "keys").read_text().splitlines()
    assert any(line.startswith("CLIENT_TRAFFIC_SECRET_0 ") for line in lines)


@pytest.mark.parametrize("seed", range(10))
def test_the_long_way_with_qlog_moves_the_same_bytes_over_a_bad_network(seed, tmp_path):
    settings = QuicSettings(qlog_dir=tmp_path)
    weather = SimulatedNetwork(delay_s=0.005, loss=0.1, duplication=0.1, jitter_s=0.01)
    world = connected(weather, settings=settings, server_settings=QuicSettings(), seed=seed)
    for _ in range(5):
        assert exchange_completes(world, 50_000)
