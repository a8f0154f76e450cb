"""Two engines on a network that loses, reorders, duplicates and delays: nothing is lost, nothing sticks, nothing stays.

Each run is drawn from its seed: weather, limits, streams, what their owners do, and what happens on the way (the client moves
to another address, keys are updated, the path shrinks, nothing arrives for a while). `QUIC_RUNS` in the environment sets
their number.
"""

import os
import random

import pytest

from support.quic_simulation import Leftovers, SimulatedNetwork, StreamRecorder, World, must, nothing_left
from tunnel_protocol.quic.key_phases import KEY_UPDATE_PACKETS
from tunnel_protocol.quic.settings import QuicSettings

RUNS = int(os.environ.get("QUIC_RUNS", "2000"))


class Talker(StreamRecorder):
    """Writes its text in pieces, respecting the high-water mark; may pause, reset or stop at some point."""

    def __init__(self, world, rng, text, plan):
        super().__init__()
        self.world = world
        self.rng = rng
        self.text = text
        self.at = 0
        self.plan = plan
        self.done_writing = False
        self.aborted_sending = self.aborted_receiving = self.paused = False

    def begin(self, stream):
        self.stream = stream
        self.pump()

    def pump(self):
        while not self.done_writing:
            if self.plan == "reset" and self.at >= len(self.text) // 2:
                self.aborted_sending = self.done_writing = True
                self.stream.reset(0)
                return
            size = self.rng.choice((1, 40, 700, 5_000, 60_000))
            piece = self.text[self.at : self.at + size]
            self.at += len(piece)
            self.done_writing = self.at == len(self.text)
            if not self.stream.write(piece, fin=self.done_writing):
                return

    def on_writable(self):
        super().on_writable()
        self.pump()

    def on_data(self, data, fin):
        must(not self.paused, "no data while paused")
        super().on_data(data, fin)
        if fin:
            return
        if self.plan == "slow":
            self.paused = True
            self.stream.pause_reading()
            self.world.later(self.rng.random() * 0.2, self.resume)
        elif self.plan == "stop":
            self.aborted_receiving = True
            self.stream.stop(0)

    def resume(self):
        self.paused = False
        self.stream.resume_reading()

    def on_stop(self, error_code):
        super().on_stop(error_code)
        self.done_writing = True


def scenario(seed):
    rng = random.Random(seed)
    weather = SimulatedNetwork(
        loss=rng.choice((0, 0.01, 0.05, 0.2)),
        duplication=rng.choice((0, 0, 0.05, 0.3)),
        delay_s=rng.choice((0.0001, 0.005, 0.05)),
        jitter_s=rng.choice((0, 0.001, 0.03)),
        mtu=rng.choice((1_500, 1_500, 1_300, 1_200)),
    )
    small = rng.random() < 0.4
    settings = QuicSettings(
        stream_window_bytes=2_000 if small else 1_250_000,
        send_buffer_bytes=1_500 if small else 262_144,
        max_streams_bidi=rng.choice((3, 10, 100)),
        ack_every=rng.choice((1, 2, 8)),
        # A loss rate of 20 % now and then takes many probes in a row, whose intervals double.
        idle_timeout_ms=200_000,
    )
    return rng, World(seed, weather, settings, settings).connect()


def let_things_happen(world, rng):
    """Up to two incidents within the first half of a second."""
    client, weather = world.client, world.weather

    def move():
        client.address = (client.address[0], client.address[1] + 1)
        # The server cannot know before the client says something, and forgets if it cannot validate the address at once.
        keep_talking()

    def keep_talking():
        if not client.engine.closed:
            client.engine.ping()
            world.later(5, keep_talking)

    def update_keys():
        rng.choice((client, world.server)).engine.one_rtt.keys.sealed = KEY_UPDATE_PACKETS

    def shrink():
        weather.mtu = 1_200

    def outage():
        ends = world.now + rng.choice((0.05, 0.5, 3))
        weather.drop = lambda *_: world.now < ends

    incidents = rng.sample((move, update_keys, shrink, outage), rng.randrange(3))
    for incident in incidents:
        world.later(rng.random() * 0.5, incident)


def make_talker(world, rng, sizes):
    plan = rng.choice(("plain", "plain", "plain", "slow", "reset", "stop"))
    return Talker(world, rng, rng.randbytes(rng.choice(sizes)), plan)


def check_direction(sender, receiver):
    if sender.aborted_sending or sender.stopped is not None or receiver.aborted_receiving:
        assert sender.text.startswith(bytes(receiver.received))
    else:
        assert receiver.fin
        assert bytes(receiver.received) == sender.text


@pytest.mark.parametrize("seed", range(RUNS))
def test_every_byte_arrives_once_and_in_order_and_nothing_is_left(seed):
    rng, world = scenario(seed)
    let_things_happen(world, rng)
    sizes = (0, 1, 300, 3_000, 30_000, 120_000) if rng.random() < 0.1 else (0, 1, 300, 2_000, 5_000)
    pairs = []
    answers = {}

    def accept(name):
        def on_stream(stream):
            talker = make_talker(world, rng, sizes)
            answers[name, stream.stream_id] = talker
            talker.begin(stream)
            return talker

        return on_stream

    world.client.accept = accept("client")
    world.server.accept = accept("server")
    left = {world.client: rng.randrange(1, 9), world.server: rng.randrange(1, 9)}

    def open_some():
        for node in left:
            if left[node] and not node.engine.free_streams:
                assert node.engine.open_stream(StreamRecorder()) is None
            while left[node] and node.engine.free_streams:
                talker = make_talker(world, rng, sizes)
                left[node] -= 1
                talker.begin(node.engine.open_stream(talker))
                pairs.append((node.name, talker))

    def all_talkers():
        return [talker for _, talker in pairs] + list(answers.values())

    def over():
        open_some()
        return (
            not any(left.values())
            and all(t.fin or t.reset is not None or t.aborted_receiving for t in all_talkers())
            and nothing_left(world.client.engine)
            and nothing_left(world.server.engine)
        )

    reached = world.run(over, 300, must=False)
    assert reached, (Leftovers.of(world.client.engine), Leftovers.of(world.server.engine), left, world.client.error)
    for name, talker in pairs:
        other = answers["server" if name == "client" else "client", talker.stream.stream_id]
        check_direction(talker, other)
        check_direction(other, talker)
    world.client.engine.shutdown(3, "done")
    world.run(lambda: world.client.engine.finished, 20)
    world.run(lambda: world.server.engine.finished, 400)
    assert (world.client.error.error_code, world.client.error.by_peer) == (3, False)
    assert world.server.error is not None
    assert all(talker.lost is None for talker in all_talkers())


@pytest.mark.parametrize("seed", range(20))
def test_streams_of_a_closed_connection_are_told_and_released(seed):
    rng, world = scenario(seed)
    world.weather.loss = 0.0
    world.server.accept = lambda _: StreamRecorder()
    recorders = [StreamRecorder() for _ in range(2)]
    for recorder in recorders:
        world.client.engine.open_stream(recorder).write(rng.randbytes(5_000))
    world.idle(0.3)
    recorders.append(StreamRecorder())
    world.client.engine.open_stream(recorders[-1]).write(bytes(1_000_000))  # more than can be under way
    world.idle(0)
    world.server.engine.shutdown(0, "shutdown")
    world.pending[world.server] = None
    world.run(lambda: world.client.error is not None, 5)
    assert (world.client.error.error_code, world.client.error.reason) == (0, "shutdown")
    assert world.client.error.by_peer
    assert all(recorder.lost is world.client.error for recorder in recorders)
    for node in (world.client, world.server):
        left = Leftovers.of(node.engine)
        assert (left.streams, left.marks) == (0, 0)
