"""Paths whose largest datagram changes under a connection, at any time and in any order: what is sent arrives all the same.

Two engines on a virtual clock; every path carries 1,200 bytes (RFC 9000 section 14), what is larger may vanish.
"""

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.quic_simulation import SimulatedNetwork, StreamRecorder, World
from tunnel_protocol.quic.path_mtu import BASE_BYTES
from tunnel_protocol.quic.settings import QuicSettings

BULK = 400_000


class Echo(StreamRecorder):
    def on_data(self, data, fin):
        super().on_data(data, fin)
        self.stream.write(data, fin=fin)


def echo(stream):
    handler = Echo()
    handler.stream = stream
    return handler


def connected(weather, seed=1):
    world = World(seed, weather, QuicSettings(keepalive_ms=5_000), QuicSettings()).connect()
    world.server.accept = world.client.accept = echo
    return world


def send(node, size=BULK):
    recorder = StreamRecorder()
    recorder.stream = node.engine.open_stream(recorder)
    recorder.stream.write(bytes(size), fin=True)
    return recorder


def size_used(node):
    return node.engine.one_rtt.path_mtu.current


def grown(mtu=1_500):
    """A connection that uses all its path has."""
    world = connected(SimulatedNetwork(delay_s=0.005, mtu=mtu))
    world.run(lambda: size_used(world.client) == size_used(world.server) == 1_452, 5)
    return world


def narrow(world, mtu):
    world.weather = dataclasses.replace(world.weather, mtu=mtu)


CHANGE = st.tuples(st.floats(0.001, 3), st.integers(BASE_BYTES, 1_500))


@settings(deadline=None, max_examples=25)
@given(changes=st.lists(CHANGE, max_size=12), loss=st.sampled_from([0.0, 0.01]), seed=st.integers(0, 1_000))
def test_bulk_of_both_sides_arrives_whatever_becomes_of_the_path(changes, loss, seed):
    world = connected(SimulatedNetwork(delay_s=0.005, loss=loss, bytes_per_s=500_000), seed)
    for after_s, mtu in changes:
        world.later(after_s, lambda mtu=mtu: narrow(world, mtu))
    sent = [send(world.client), send(world.server)]
    world.run(lambda: all(recorder.fin for recorder in sent), 60)
    assert all(len(recorder.received) == BULK for recorder in sent)
    assert world.client.error is None
    assert world.server.error is None


@pytest.mark.parametrize("mtu", [1_200, 1_201, 1_280, 1_451])
def test_a_connection_that_shrank_is_soon_back_at_what_its_path_carries(mtu):
    world = grown()
    narrow(world, mtu)
    sent = send(world.client)
    began = world.now
    world.run(lambda: sent.fin, 5)
    assert world.now - began < 2
    assert size_used(world.client) == BASE_BYTES
    narrow(world, 1_500)
    world.run(lambda: size_used(world.client) == 1_452, 70)


def test_a_datagram_that_the_first_hop_refuses_makes_the_next_ones_small_at_once():
    world = grown()
    engine = world.client.engine
    engine.datagram_refused(1_400, world.now)
    assert size_used(world.client) == BASE_BYTES
    narrow(world, 1_300)
    world.largest = 0
    sent = send(world.client)
    world.run(lambda: sent.fin, 5)
    world.run(lambda: BASE_BYTES < size_used(world.client) <= 1_300, 70)


@pytest.mark.parametrize("size", [1_453, 9_000])
def test_a_probe_that_the_first_hop_refuses_does_not_cost_what_was_found(size):
    world = grown()
    world.client.engine.datagram_refused(size, world.now)
    assert size_used(world.client) == 1_452


def test_small_datagrams_that_are_refused_are_no_matter_of_size():
    world = grown()
    world.client.engine.datagram_refused(BASE_BYTES, world.now)
    assert size_used(world.client) == 1_452
