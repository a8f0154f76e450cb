"""Hostile bytes: datagrams from nowhere, damaged datagrams, and well-protected packets full of nonsense."""

import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support.quic_simulation import CLIENT_ADDRESS, SimulatedNetwork, StreamRecorder, World, nothing_left, sealed
from tunnel_protocol.quic.engine import destination_cid
from tunnel_protocol.quic.settings import QuicSettings

STRANGER = ("198.51.100.9", 9)
NOTHING_SPECIAL = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


class Echo(StreamRecorder):
    def on_data(self, data, fin):
        super().on_data(data, fin)
        self.stream.write(data, fin=fin)


def connected(seed=0, settings=None):
    world = World(seed, SimulatedNetwork(delay_s=0.001), QuicSettings(), settings or QuicSettings()).connect()

    def accept(stream):
        echo = Echo()
        echo.stream = stream
        return echo

    world.server.accept = accept
    return world


def still_serves(world):
    recorder = StreamRecorder()
    world.client.engine.open_stream(recorder).write(b"are you there?" * 200, fin=True)
    world.run(lambda: recorder.fin, 30)
    assert recorder.received == b"are you there?" * 200
    world.run(lambda: nothing_left(world.client.engine) and nothing_left(world.server.engine), 30)


@NOTHING_SPECIAL
@given(st.lists(st.binary(max_size=1_500), max_size=8), st.booleans(), st.booleans())
def test_datagrams_of_a_stranger_change_nothing(datagrams, know_the_id, from_the_peers_address):
    world = connected()
    engine = world.server.engine
    for data in datagrams:
        if know_the_id:
            data = (
                bytes((0x40 | (data[0] & 0x3F) if data else 0x40,))
                + next(iter(engine.one_rtt.local_cids.active))
                + data[1:]
            )
        destination_cid(data)
        engine.receive(data, CLIENT_ADDRESS if from_the_peers_address else STRANGER, world.now)
        world.server.tick()
    still_serves(world)


@pytest.mark.parametrize("seed", range(30))
def test_damaged_copies_of_real_datagrams_change_nothing(seed):
    world = connected(seed)
    rng = random.Random(seed)
    send = world.send

    def send_with_damage(sender, data, address):
        if rng.random() < 0.5:
            damaged = bytearray(data)
            for _ in range(rng.randrange(1, 4)):
                damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
            send(sender, bytes(damaged), address)
        if rng.random() < 0.2:
            send(sender, data[: rng.randrange(len(data))], address)
        send(sender, data, address)

    world.send = send_with_damage
    for _ in range(5):
        still_serves(world)


@pytest.mark.parametrize("seed", range(20))
def test_a_handshake_survives_damaged_copies(seed):
    world = World(seed, SimulatedNetwork(delay_s=0.001))
    rng = random.Random(seed)
    send = world.send

    def send_with_damage(sender, data, address):
        damaged = bytearray(data)
        damaged[rng.randrange(20, len(damaged))] ^= 0x55
        send(sender, bytes(damaged), address)
        send(sender, data, address)

    world.send = send_with_damage
    world.connect()


# Frame types and plausible fields: closer to what a decoder has to survive than plain noise.
varints = st.one_of(st.integers(0, 63), st.integers(0, 2**14 - 1), st.integers(0, 2**62 - 1))


def encode_varint(value):
    for size, bound in ((1, 6), (2, 14), (4, 30), (8, 62)):
        if value < 1 << bound:
            return (value | (size.bit_length() - 1) << (8 * size - 2)).to_bytes(size, "big")
    raise AssertionError


frames = st.one_of(
    st.binary(min_size=1, max_size=40),
    st.tuples(st.one_of(st.integers(0, 0x31), varints), st.lists(varints, max_size=6), st.binary(max_size=60)).map(
        lambda f: encode_varint(f[0]) + b"".join(map(encode_varint, f[1])) + f[2]
    ),
)


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(frames, min_size=1, max_size=5), st.booleans())
def test_a_peer_that_talks_nonsense_costs_itself_the_connection_at_most(nonsense, from_client):
    world = connected()
    near, far = (world.client, world.server) if from_client else (world.server, world.client)
    for payload in nonsense:
        if len(payload) < 4:
            payload = payload + bytes(4)
        datagram = sealed(near.engine, payload)
        far.engine.receive(datagram, near.address, world.now)
        far.tick()
        held = sum(s.receive_half.held_bytes for s in far.engine.one_rtt.table.streams.values())
        assert held <= 60 * len(nonsense) * 2 + 1_250_000 * far.engine.open_streams
    world.run(lambda: far.error is not None and far.engine.finished, 1, must=False)
    if far.error is None:
        world.idle(1)
    else:
        assert not far.engine.open_streams
        world.run(lambda: near.error is not None, 40)


BROKEN_RULES = [
    (b"\x08\x02" + b"x", 0x4),  # a unidirectional stream: none granted
    (b"\x08\x41\x94" + b"x", 0x4),  # stream 404: the 102nd of the client
    (b"\x08\x01" + b"xx", 0x5),  # a stream of ours that we never opened
    (b"\x0c\x00\x80\x20\x00\x00" + b"x", 0x3),  # far beyond the stream's window
    (b"\x0c\x00" + b"\xff" * 8 + b"x", None),  # beyond what an offset can be
    (b"\x1e" + bytes(3), 0xA),  # HANDSHAKE_DONE from a client
    (b"\x21" + bytes(3), 0x7),  # an unknown frame
    (b"\x0e\x00\x40", 0x7),  # a STREAM frame that ends in its offset
    (b"\x02\x44\x00\x00\x00\x00", 0xA),  # acknowledges packet 1,024, which was never sent
    (b"\x02\x00\x00\x00\x05", 0x7),  # acknowledges packets before the first
    (b"\x03\x00\x00\x80", 0x7),  # an ACK with ECN counts that ends in its ranges
    (b"\x0a\x00\x01x" + b"\x0b\x00\x00", 0x6),  # a stream that is open by now ends before what it has brought
    (b"\x04\x00\x00\x05\x04\x00\x00\x06", 0x6),  # two final sizes
    (b"\x04\x00\x00\x80\x20\x00\x00", 0x3),  # a final size far beyond the stream's window
    (b"\x05\x03\x00" + bytes(1), 0x5),  # STOP_SENDING for a stream of ours that we never opened
]


@pytest.mark.parametrize("long_way", [False, True])
@pytest.mark.parametrize(("payload", "code"), BROKEN_RULES)
def test_a_broken_rule_ends_the_connection_with_its_code(payload, code, long_way, tmp_path):
    """The short way through a packet and the long one, which qlog takes, know the same rules."""
    world = connected(settings=QuicSettings(qlog_dir=tmp_path) if long_way else None)
    datagram = sealed(world.client.engine, payload)
    world.server.engine.receive(datagram, world.client.address, world.now)
    world.server.tick()
    assert code is None or world.server.error.error_code == code
    assert not world.server.error.by_peer
    world.run(lambda: world.client.error is not None, 5)
    assert world.client.error.by_peer
    assert world.client.error.error_code == world.server.error.error_code


@pytest.mark.parametrize("long_way", [False, True])
def test_rare_frames_are_understood_either_way(long_way, tmp_path):
    """RESET_STREAM, STOP_SENDING, MAX_STREAM_DATA, STREAM_DATA_BLOCKED, MAX_DATA, and ACK with ECN counts."""
    world = connected(settings=QuicSettings(qlog_dir=tmp_path) if long_way else None)
    handlers = []

    def accept(_):
        handlers.append(StreamRecorder())
        return handlers[-1]

    world.server.accept = accept
    client = world.client.engine
    ids = [world.client.engine.open_stream(StreamRecorder()).stream_id for _ in range(3)]
    assert ids == [0, 4, 8]

    def say(payload):
        world.server.engine.receive(sealed(client, payload), world.client.address, world.now)
        world.server.tick()

    say(b"\x08\x00" + b"first")
    say(b"\x04\x04\x07\x00" + b"\x05\x00\x09")
    assert handlers[0].received == b"first"
    assert (handlers[1].reset, handlers[0].stopped) == (7, 9)
    say(b"\x11\x08\x80\x40\x00\x00" + b"\x15\x08\x00" + b"\x10\x80\x40\x00\x00")
    assert len(handlers) == 3
    assert world.server.engine.one_rtt.table.streams[8].send_half.limit == 4 << 20
    unacknowledged = sorted(world.server.engine.one_rtt.recovery.sent)
    if unacknowledged:
        say(b"\x03" + encode_varint(unacknowledged[-1]) + b"\x00\x00\x00" + b"\x01\x00\x00")
        assert unacknowledged[-1] not in world.server.engine.one_rtt.recovery.sent
    assert world.server.error is None


@pytest.mark.parametrize("long_way", [False, True])
def test_a_packet_without_frames_is_refused(long_way, tmp_path):
    world = connected(settings=QuicSettings(qlog_dir=tmp_path) if long_way else None)
    client = world.client.engine
    number = client.one_rtt.writer.next_number
    keys = client.one_rtt.keys.seals
    header = bytes((0x43,)) + client.one_rtt.peer_cids.current.cid + number.to_bytes(4, "big")
    payload = keys.aead((keys.iv ^ number).to_bytes(12, "big"), b"", header)
    mask = keys.mask(payload[:16])
    protected = bytes(a ^ b for a, b in zip(header[9:], mask[1:5], strict=True))
    datagram = bytes((header[0] ^ (mask[0] & 0x1F),)) + header[1:9] + protected + payload
    world.server.engine.receive(datagram, world.client.address, world.now)
    world.server.tick()
    assert world.server.error.error_code == 0xA


def test_a_peer_that_skips_packet_numbers_makes_no_list_without_end():
    world = connected()
    client = world.client.engine
    for _ in range(600):
        client.one_rtt.writer.next_number += 2
        world.server.engine.receive(sealed(client, b"\x01" + bytes(3)), world.client.address, world.now)
        world.server.tick()
    assert len(world.server.engine.one_rtt.received.ranges) <= 256
    assert world.server.error is None
