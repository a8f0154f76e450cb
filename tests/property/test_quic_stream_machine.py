"""Hypothesis drives two engines: open, write, consume, pause, reset, stop, close, bad weather; then all must come to rest."""

import os
from datetime import timedelta

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from support.quic_simulation import SimulatedNetwork, StreamRecorder, World, must, nothing_left
from tunnel_protocol.quic.settings import QuicSettings

WINDOW = 4_000
HIGH_WATER = 3_000
LOSS = st.sampled_from((0, 0.05, 0.3))
IDLE_S = 100_000
"""So long that nothing which is stuck is swept away before anybody looks."""


class Side(StreamRecorder):
    """One end of a stream with a model of what it wrote."""

    def __init__(self, node):
        super().__init__()
        self.node = node
        self.other = None
        self.written = bytearray()
        self.fin_written = self.reset_called = self.stop_called = False
        self.paused = False

    def on_data(self, data, fin):
        must(not self.paused, "no data while paused")
        must(not self.stop_called, "no data after stop")
        super().on_data(data, fin)
        must(self.other.written.startswith(self.received), "what was written, in order")

    def may_write(self):
        return not (self.fin_written or self.reset_called)


class TwoEngines(RuleBasedStateMachine):
    sides = Bundle("sides")

    @initialize(target=sides, seed=st.integers(0, 2**32), loss=LOSS)
    def connect(self, seed, loss):
        """Every example has streams to begin with: the rules of an example are drawn too, and may be without `open`."""
        limits = QuicSettings(
            stream_window_bytes=WINDOW,
            send_buffer_bytes=HIGH_WATER,
            max_streams_bidi=5,
            idle_timeout_ms=IDLE_S * 1_000,
        )
        self.world = World(seed, SimulatedNetwork(delay_s=0.005), limits, limits).connect()
        self.all = []
        self.told = []
        """Who has to hear of the end of the connection."""
        self.waiting = {}
        for node in (self.world.client, self.world.server):
            node.accept = lambda stream, node=node: self.accept(node, stream)
        self.world.weather.loss = loss
        return multiple(*(side for from_client in (True, True, False) for side in self.open_pair(from_client)))

    def accept(self, node, stream):
        side = self.waiting.pop((node.name, stream.stream_id))
        side.stream = stream
        return side

    @rule(target=sides, from_client=st.booleans())
    def open(self, from_client):
        return multiple(*self.open_pair(from_client))

    def open_pair(self, from_client):
        near, far = (self.world.client, self.world.server) if from_client else (self.world.server, self.world.client)
        here, there = Side(near), Side(far)
        here.other, there.other = there, here
        free = near.engine.free_streams
        here.stream = near.engine.open_stream(here)
        assert (here.stream is None) == (free == 0)
        if here.stream is None:
            return []
        self.waiting[far.name, here.stream.stream_id] = there
        self.all += [here, there]
        return [here, there]

    @rule(side=sides, size=st.sampled_from((0, 1, 100, 1_500, 5_000)), fin=st.booleans())
    def write(self, side, size, fin):
        if side.stream is None or not side.may_write():
            return
        data = bytes((len(side.written) + at) % 251 for at in range(size))
        dropped = (
            side.stopped is not None or side.node.error is not None or side.stream.send_half.stopped_by_peer is not None
        )
        writable = side.stream.write(data, fin=fin)
        side.fin_written = fin
        side.written += data
        if not dropped:
            assert writable == (side.stream.send_half.unsent_bytes <= HIGH_WATER)

    @rule(side=sides)
    def pause(self, side):
        if side.stream is not None:
            side.paused = True
            side.stream.pause_reading()

    @rule(side=sides)
    def resume(self, side):
        if side.stream is not None:
            side.paused = False
            side.stream.resume_reading()

    @rule(side=consumes(sides))
    def reset_and_stop(self, side):
        if side.stream is not None:
            side.reset_called = side.stop_called = True
            side.stream.reset()
            side.stream.stop()

    @rule(side=sides)
    def reset(self, side):
        if side.stream is not None:
            side.reset_called = True
            side.stream.reset()

    @rule(side=sides)
    def stop(self, side):
        if side.stream is not None:
            side.stop_called = True
            side.stream.stop()

    @rule(loss=LOSS, duplication=st.sampled_from((0, 0.2)), jitter=st.sampled_from((0, 0.02)))
    def weather(self, loss, duplication, jitter):
        self.world.weather.loss, self.world.weather.duplication = loss, duplication
        self.world.weather.jitter_s = jitter

    @rule(seconds=st.sampled_from((0.001, 0.02, 0.3, 3)))
    def wait(self, seconds):
        self.world.idle(seconds)

    @rule(node=st.sampled_from(("client", "server")), now=st.sampled_from((False,) * 9 + (True,)))
    def close(self, node, now):
        if now:
            engine = getattr(self.world, node).engine
            held = [
                stream for stream in engine.one_rtt.table.streams.values() if stream not in engine.one_rtt.table.ready
            ]
            self.told += [side for side in self.all if side.stream in held]
            engine.shutdown(0, "over")

    @invariant()
    def memory_is_bounded(self):
        for node in (self.world.client, self.world.server):
            for stream in node.engine.one_rtt.table.streams.values():
                held = stream.receive_half.held_bytes
                assert held <= WINDOW
                half = stream.receive_half
                assert half.highest <= half.limit <= half._taken + WINDOW

    def teardown(self):
        if not hasattr(self, "world"):
            return
        world = self.world
        world.weather = SimulatedNetwork(delay_s=0.005)
        for _ in range(40):
            # Streams the other side has just learnt of come to an end in the next round.
            self.finish_everything()
            world.run(self.over, 2, must=False)
        if not self.someone_left():
            assert self.at_rest()
            for side in self.all:
                self.check_received(side, side.other)
        else:
            # Whoever has not heard the close finds out when the silence has lasted long enough.
            world.run(lambda: world.client.error is not None and world.server.error is not None, 2 * IDLE_S)
            assert not world.client.engine.one_rtt.table.streams
            assert not world.server.engine.one_rtt.table.streams
            assert all(side.lost is not None for side in self.told)

    def finish_everything(self):
        for side in self.all:
            if side.stream is not None:
                side.paused = False
                side.stream.resume_reading()
                if side.may_write():
                    side.fin_written = True
                    side.stream.write(b"", fin=True)

    def over(self):
        return self.someone_left() or self.at_rest()

    def someone_left(self):
        return self.world.client.error is not None or self.world.server.error is not None

    def at_rest(self):
        return nothing_left(self.world.client.engine) and nothing_left(self.world.server.engine)

    @staticmethod
    def check_received(side, sender):
        if not (sender.reset_called or side.stop_called or sender.stopped is not None):
            assert side.fin
            assert side.received == sender.written


EXAMPLES = int(os.environ.get("QUIC_EXAMPLES", "200"))
TestTwoEngines = TwoEngines.TestCase
TestTwoEngines.settings = settings(
    max_examples=EXAMPLES,
    stateful_step_count=40,
    deadline=timedelta(seconds=10),
    suppress_health_check=list(HealthCheck),
)
