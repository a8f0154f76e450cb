"""A day of a busy tunnel: exchange after exchange on one connection, and nothing of them stays.

`QUIC_EXCHANGES` in the environment sets their number; two million are a day at 23 a second.
"""

import gc
import os
import sys
from pathlib import Path

import pytest

from support.quic_simulation import SimulatedNetwork, StreamRecorder, World, must, nothing_left
from tunnel_protocol.quic.settings import QuicSettings
from tunnel_protocol.quic.stream_interface import StreamHandler

EXCHANGES = int(os.environ.get("QUIC_EXCHANGES", "40000"))
CONCURRENT = 50
CHECKS = 10
REQUEST, CHUNK, CHUNKS = bytes(300), bytes(120), 3


class Answerer(StreamHandler):
    """Answers a request that has ended with a few chunks and FIN; keeps nothing."""

    def __init__(self, stream):
        self.stream = stream

    def on_data(self, data, fin):
        if fin:
            for _ in range(CHUNKS):
                self.stream.write(CHUNK)
            self.stream.write(b"", fin=True)

    def on_reset(self, error_code): ...

    def on_stop(self, error_code): ...

    def on_writable(self): ...

    def on_connection_lost(self, error): ...


class Asker(StreamRecorder):
    def __init__(self, caller):
        super().__init__()
        self.caller = caller

    def on_data(self, data, fin):
        super().on_data(data, fin)
        if fin:
            self.caller.ended(self)


class Caller:
    """Keeps so many exchanges running until all have been made; every hundredth is abandoned."""

    def __init__(self, node):
        self.node = node
        node.on_credit = self.ask
        self.left = self.running = self.asked = self.answered = 0

    def run(self, count):
        self.left += count
        self.ask()

    def ask(self):
        engine = self.node.engine
        while self.left and self.running < CONCURRENT and engine.free_streams:
            self.left -= 1
            self.asked += 1
            asker = Asker(self)
            stream = engine.open_stream(asker)
            stream.write(REQUEST, fin=True)
            if self.asked % 100:
                self.running += 1
            else:
                stream.reset()
                stream.stop()

    def ended(self, asker):
        must(len(asker.received) == CHUNKS * len(CHUNK), "the whole answer")
        self.running -= 1
        self.answered += 1
        self.ask()


def resident_bytes():
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.timeout(120 + EXCHANGES // 2_000)
def test_memory_is_flat_over_a_day_of_exchanges_on_one_tunnel(capsys):
    world = World(1, SimulatedNetwork(delay_s=0.001, loss=0.002), QuicSettings(), QuicSettings()).connect()
    world.server.accept = Answerer
    caller = Caller(world.client)

    def run(count):
        """Make so many exchanges; the blocks and bytes of memory in use when all is quiet again."""
        caller.run(count)
        world.run(lambda: not (caller.left or caller.running), count)
        world.run(lambda: nothing_left(world.client.engine) and nothing_left(world.server.engine), 60)
        gc.collect()
        return sys.getallocatedblocks(), resident_bytes()

    run(EXCHANGES // CHECKS)
    figures = [run(EXCHANGES // CHECKS) for _ in range(CHECKS - 1)]
    if EXCHANGES >= 1_000_000:
        with capsys.disabled():
            print("\nblocks and resident bytes:", *figures, sep="\n")  # noqa: T201 - what the long form is run for
    (blocks, resident), *_, (blocks_at_the_end, resident_at_the_end) = figures
    assert caller.answered == EXCHANGES - EXCHANGES // 100
    assert blocks_at_the_end - blocks < 500
    assert resident_at_the_end - resident < 2 << 20
