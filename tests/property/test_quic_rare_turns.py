"""Turns a connection seldom takes: credit of the whole connection, refusals, repeated resets, ends of all kinds, and qlog of them."""

import json

import pytest
from aioquic.buffer import Buffer

from support.quic_simulation import SimulatedNetwork, StreamRecorder, World, nothing_left, sealed
from tunnel_protocol.errors import ConnectionClosedError
from tunnel_protocol.quic.aioquic_handshake import handshake
from tunnel_protocol.quic.settings import QuicSettings
from tunnel_protocol.quic.varint import varint


def connected(settings=None, **more):
    world = World(
        1, SimulatedNetwork(delay_s=0.005), settings or QuicSettings(), settings or QuicSettings(), **more
    ).connect()
    world.run(lambda: nothing_left(world.client.engine) and nothing_left(world.server.engine), 5)
    return world


def tell(world, payload):
    """The server says something no engine of ours would."""
    world.client.engine.receive(sealed(world.server.engine, payload), world.server.address, world.now)
    world.client.tick()


@pytest.mark.parametrize("long_way", [False, True])
def test_a_peer_that_limits_the_whole_connection_is_obeyed_and_its_renewal_used(long_way, tmp_path):
    settings = QuicSettings(qlog_dir=tmp_path / "qlog") if long_way else QuicSettings()
    world = World(1, SimulatedNetwork(delay_s=0.005), settings, QuicSettings())
    world.server_factory._server.max_data = 20_000
    world.connect()
    answers = []

    def accept(_):
        answers.append(StreamRecorder())
        return answers[-1]

    world.server.accept = accept
    streams = [world.client.engine.open_stream(StreamRecorder()) for _ in range(3)]
    for stream in streams:
        stream.write(bytes(15_000), fin=True)
    world.idle(1)
    assert sum(len(answer.received) for answer in answers) == 20_000
    tell(world, b"\x10" + varint(20_000))  # no more than before
    world.idle(1)
    assert sum(len(answer.received) for answer in answers) == 20_000
    tell(world, b"\x10" + varint(1 << 30))
    world.run(lambda: all(answer.fin for answer in answers), 5)
    assert [len(answer.received) for answer in answers] == [15_000] * 3
    assert not world.client.engine.one_rtt.table.connection_blocked


def test_a_stream_nobody_wants_is_given_back_and_its_credit_renewed():
    world = connected(QuicSettings(max_streams_bidi=2))
    world.server.accept = lambda _: None
    for _ in range(6):
        recorder = StreamRecorder()
        world.run(lambda: world.client.engine.free_streams, 5)
        stream = world.client.engine.open_stream(recorder)
        stream.write(b"please")
        world.run(lambda recorder=recorder: recorder.reset is not None and recorder.stopped is not None, 5)
    world.run(lambda: nothing_left(world.client.engine) and nothing_left(world.server.engine), 5)


def test_a_reset_that_is_acknowledged_twice_ends_its_stream_once():
    """It was sent again although the first had only been late."""
    world = connected()
    world.server.accept = lambda _: StreamRecorder()
    recorder = StreamRecorder()
    stream = world.client.engine.open_stream(recorder)
    stream.write(b"x", fin=True)
    world.idle(0.1)
    stream.reset()
    stream.stop()
    tell(world, b"\x04\x00\x00\x00")
    world.run(lambda: stream.stream_id not in world.client.engine.one_rtt.table.streams, 5)
    before = world.client.engine.free_streams
    world.client.engine.one_rtt.table.ready[stream] = None
    stream.on_reset_acked()
    world.client.tick()
    assert world.client.engine.free_streams == before


def test_numbers_of_every_length_are_written_as_the_library_reads_them():
    for value in (0, 63, 64, 16_383, 16_384, 2**30 - 1, 2**30, 2**62 - 1):
        assert Buffer(data=varint(value)).pull_uint_var() == value


def test_a_peers_largest_datagram_is_respected(monkeypatch):
    told = handshake._peer_parameters

    def small(parameters):
        parameters.max_udp_payload_size = 1_300
        return told(parameters)

    monkeypatch.setattr(handshake, "_peer_parameters", small)
    world = connected()
    world.idle(1)
    assert world.server.engine.one_rtt.path_mtu.current == 1_300


def test_qlog_names_what_is_said_about_streams_in_general(tmp_path):
    logging = [QuicSettings(qlog_dir=tmp_path / side, max_streams_bidi=2) for side in ("client", "server")]
    world = World(1, SimulatedNetwork(delay_s=0.005), *logging).connect()

    class Answer(StreamRecorder):
        def on_data(self, data, fin):
            super().on_data(data, fin)
            self.stream.write(data, fin=fin)

    def accept(stream):
        answer = Answer()
        answer.stream = stream
        return answer

    world.server.accept = accept
    for _ in range(6):
        while world.client.engine.free_streams:
            world.client.engine.open_stream(StreamRecorder()).write(b"x", fin=True)
        assert world.client.engine.open_stream(StreamRecorder()) is None
        world.idle(0.2)
    world.client.engine.shutdown(0, "")
    world.client.tick()
    world.run(lambda: world.client.engine.finished and world.server.engine.finished, 60)
    world.client_factory.close()
    world.server_factory.close()
    sent, received = {}, {}
    for trace in tmp_path.glob("*/*"):
        for event in json.loads(trace.read_text())["traces"][0]["events"]:
            kinds = sent if event["name"].endswith("sent") else received
            kinds.update((frame["frame_type"], frame) for frame in event["data"].get("frames", []))
    assert {"max_streams", "streams_blocked", "stream", "ack"} <= sent.keys() & received.keys()
    assert sent.keys() - received.keys() <= {"connection_close"}, "what was sent has the names of what was received"
    assert sent["max_streams"]["stream_type"] == received["max_streams"]["stream_type"]
    assert sent["stream"].keys() == received["stream"].keys()


# --- ends ------------------------------------------------------------------------------------------------------------


def test_a_connection_that_has_ended_stays_as_it_is():
    world = connected()
    engine = world.client.engine
    engine.abandon(ConnectionClosedError(None, "first", by_peer=False))
    world.client.tick()
    engine.abandon(ConnectionClosedError(None, "second", by_peer=False))
    engine.shutdown(1, "third")
    engine.handle_timer(world.now + 100)
    world.client.tick()
    assert world.client.error.reason == "first"
    assert engine.deadline() is None
    assert engine.open_stream(StreamRecorder()) is None
    assert engine.free_streams == 0
    assert engine.finished


def test_an_end_that_was_begun_keeps_its_reason():
    world = connected()
    world.client.engine.shutdown(5, "enough")
    world.client.engine.abandon(ConnectionClosedError(None, "in a hurry", by_peer=False))
    world.client.tick()
    assert (world.client.error.error_code, world.client.error.reason) == (5, "enough")
    assert world.client.engine.finished


def test_a_handler_that_fails_at_the_end_costs_nobody_else_his_farewell():
    class Clumsy(StreamRecorder):
        def on_connection_lost(self, error):
            raise ZeroDivisionError

    world = connected()
    polite = StreamRecorder()
    world.client.engine.open_stream(Clumsy()).write(b"x")
    world.client.engine.open_stream(polite).write(b"x")
    world.client.engine.shutdown(0, "over")
    world.client.tick()
    assert polite.lost is world.client.error is not None


def test_a_server_without_any_path_that_answers_gives_up():
    world = connected()
    engine = world.server.engine
    path = engine.one_rtt.paths.active
    path.is_validated, path.validation_deadline = False, world.now
    engine.handle_timer(world.now + 0.1)
    world.server.tick()
    assert (world.server.error.error_code, world.server.error.reason) == (None, "no validated network path")
