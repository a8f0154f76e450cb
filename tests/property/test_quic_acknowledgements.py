"""When and what an engine acknowledges: rarer than every second packet, but within what RFC 9000 section 13.2 allows."""

import pytest
from aioquic.buffer import Buffer
from aioquic.quic.packet import pull_ack_frame

from support.quic_simulation import SimulatedNetwork, StreamRecorder, World, nothing_left
from tunnel_protocol.quic.settings import QuicSettings

try:
    from tunnel_protocol.quic.packet_speedups import open_packet
except ImportError:
    from tunnel_protocol.quic.packets import open_packet

PROMISED_S = 0.025
"""The maximum delay peers are told (the default of `max_ack_delay`, RFC 9000 section 18.2)."""


class Watcher:
    """A server that acknowledges; its datagrams are opened with the client's keys as they leave."""

    def __init__(self, settings=None):
        settings = settings or QuicSettings(max_datagram_bytes=1_200)
        self.world = World(1, SimulatedNetwork(delay_s=0.001), settings, settings).connect()
        self.world.server.accept = lambda _: StreamRecorder()
        self.world.run(lambda: nothing_left(self.world.client.engine) and nothing_left(self.world.server.engine), 5)
        self.world.idle(1)
        self.stream = self.world.client.engine.open_stream(StreamRecorder())
        self.acknowledgements = []
        """Time of every acknowledgement from now on, and which of the packets from now on it names."""
        self.world.weather.drop = self.look
        self.first = self.world.client.engine.one_rtt.writer.next_number

    def look(self, sender, data):
        if sender == "server":
            one_rtt = self.world.client.engine.one_rtt
            _, payload = open_packet(data, one_rtt.keys.opens, one_rtt.keys.phase, one_rtt.received.expected)
            buf = Buffer(data=payload)
            if buf.pull_uint_var() == 2:
                ranges, _ = pull_ack_frame(buf)
                known = [range(max(r.start, self.first), r.stop) for r in ranges if r.stop > self.first]
                self.acknowledgements.append((self.world.now, [at - self.first for r in known for at in r]))
        return False

    def packets(self, count, size=1_100):
        """So many packets of the client, not yet sent."""
        engine = self.world.client.engine
        datagrams = []
        for _ in range(count):
            self.stream.write(bytes(size))
            ((datagram, _, _),) = engine.poll(self.world.now)
            datagrams.append(datagram)
        return datagrams

    def arrive(self, *datagrams):
        node = self.world.server
        for datagram in datagrams:
            node.engine.receive(datagram, self.world.client.address, self.world.now)
        node.tick()


def test_one_packet_is_acknowledged_within_the_promised_delay():
    watcher = Watcher()
    sent_at = watcher.world.now
    watcher.arrive(*watcher.packets(1))
    assert watcher.acknowledgements == []
    watcher.world.idle(1)
    ((at, _),) = watcher.acknowledgements
    assert 0.010 < at - sent_at <= PROMISED_S


@pytest.mark.parametrize(("ack_every", "size", "packets"), [(1, 1_100, 2), (2, 1_100, 3), (8, 1_100, 9), (8, 20, 64)])
def test_so_many_packets_are_acknowledged_at_once(ack_every, size, packets):
    """What counts is bytes, 1,200 to a packet, and small packets count for an eighth of that at least."""
    watcher = Watcher(QuicSettings(max_datagram_bytes=1_200, ack_every=ack_every))
    *datagrams, last = watcher.packets(packets, size)
    for datagram in datagrams:
        watcher.arrive(datagram)
    assert watcher.acknowledgements == []
    watcher.arrive(last)
    assert len(watcher.acknowledgements) == 1


def test_a_gap_is_reported_at_once_and_so_is_what_fills_it():
    """So that the peer repairs soon and takes nothing for lost that was only late (RFC 9000 section 13.2.1)."""
    watcher = Watcher()
    first, late, third = watcher.packets(3)
    watcher.arrive(first)
    assert watcher.acknowledgements == []
    watcher.arrive(third)
    assert [named for _, named in watcher.acknowledgements] == [[0, 2]]
    watcher.arrive(late)
    assert [named for _, named in watcher.acknowledgements] == [[0, 2], [0, 1, 2]]


def test_all_ranges_are_named_until_the_peer_knows_them():
    watcher = Watcher()
    datagrams = watcher.packets(20, 400)
    watcher.arrive(*datagrams[::2])
    watcher.arrive(*datagrams[1:6:2])
    assert watcher.acknowledgements[-1][1] == [0, 1, 2, 3, 4, 5, 6, *range(8, 20, 2)]


def test_a_repeated_datagram_is_not_taken_twice():
    watcher = Watcher()
    datagrams = watcher.packets(3)
    watcher.arrive(*datagrams)
    watcher.world.idle(1)
    assert len(watcher.acknowledgements) == 1
    watcher.arrive(*datagrams, *datagrams)
    watcher.world.idle(1)
    assert len(watcher.acknowledgements) == 1


def test_an_acknowledgement_rides_on_data_that_leaves_anyway():
    watcher = Watcher()
    handlers = []

    def accept(stream):
        stream.write(b"answer")
        handlers.append(StreamRecorder())
        return handlers[-1]

    watcher.world.server.accept = accept
    watcher.arrive(*watcher.packets(1))
    assert len(watcher.acknowledgements) == 1
    datagrams = watcher.world.datagrams
    watcher.world.idle(0.03)
    assert watcher.world.datagrams - datagrams <= 1, "the client's own acknowledgement"


def test_acknowledgements_alone_are_not_acknowledged():
    watcher = Watcher()
    watcher.arrive(*watcher.packets(1))
    watcher.world.idle(5)
    assert len(watcher.acknowledgements) == 1
    assert watcher.world.client.engine.one_rtt.received.ack_at is None
