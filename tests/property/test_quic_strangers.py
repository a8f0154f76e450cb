"""What somebody without any handshake can make a server hold and compute: little, and for a short time."""

import gc
import logging
import time
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.hostile_packets import client_hello, crypto_frame, gaps, initial
from support.quic_simulation import StreamRecorder, World, identity
from tunnel_protocol.errors import ConnectionClosedError
from tunnel_protocol.quic.aioquic_handshake import AioquicFactory
from tunnel_protocol.quic.aioquic_handshake.bounded import HANDSHAKE_PACKET_FRAMES
from tunnel_protocol.quic.crypto_stream import (
    CLIENT_MESSAGE,
    CRYPTO_BUFFER,
    CRYPTO_FRAMES,
    SERVER_MESSAGE,
    CryptoBufferError,
    CryptoStream,
)
from tunnel_protocol.quic.settings import QuicSettings
from tunnel_protocol.quic.tls import ClientTls, ServerTls

STRANGER = ("192.0.2.9", 4_000)


class Owner:
    def __init__(self):
        self.error = None

    def on_work(self): ...

    def on_established(self): ...

    def on_peer_stream(self, stream): ...

    def on_stream_credit(self): ...

    def on_connection_id(self, connection_id): ...

    def on_connection_id_retired(self, connection_id): ...

    def on_closed(self, error):
        self.error = error


def server():
    return AioquicFactory(QuicSettings(), ServerTls(identity().cert_pem, identity().key_pem))


def message(length, announced=None):
    """A TLS handshake message of type ClientHello."""
    return b"\x01" + (length if announced is None else announced).to_bytes(3, "big") + bytes(length)


# The CRYPTO stream ------------------------------------------------------------------------------------------------------


def cut(data, sizes):
    at, frames = 0, []
    for size in sizes:
        if at >= len(data):
            break
        frames.append((at, data[at : at + size]))
        at += size
    return [*frames, (at, data[at:])]


@given(st.lists(st.integers(0, 300), max_size=4), st.lists(st.integers(1, 90), max_size=30), st.randoms())
def test_whole_messages_come_out_in_order_however_they_were_cut_and_mixed(lengths, sizes, rng):
    data = b"".join(message(length) for length in lengths)
    frames = cut(data, sizes) * 2
    rng.shuffle(frames)
    stream = CryptoStream(from_client=True)
    out = [stream.receive(offset, piece) for offset, piece in frames]
    assert b"".join(out) == data
    assert stream.handed_over == stream.received == len(data)
    assert stream.held_bytes() == 0


@given(st.lists(st.tuples(st.integers(0, 1 << 40), st.binary(max_size=60)), max_size=700))
def test_what_is_held_is_bounded_by_what_arrived_and_by_the_limit(frames):
    stream, arrived = CryptoStream(from_client=True), 0
    for offset, data in frames:
        arrived += len(data)
        try:
            stream.receive(offset, data)
        except CryptoBufferError:
            return
        assert stream.held_bytes() <= min(arrived, CRYPTO_BUFFER.bytes + CLIENT_MESSAGE.bytes)


def test_a_byte_beyond_the_buffer_is_refused():
    stream = CryptoStream(from_client=True)
    stream.receive(CRYPTO_BUFFER.bytes - 1, b"x")
    with pytest.raises(CryptoBufferError, match="ahead"):
        stream.receive(CRYPTO_BUFFER.bytes, b"x")


def test_one_gap_too_many_is_refused():
    stream = CryptoStream(from_client=True)
    for at in range(CRYPTO_BUFFER.pieces):
        stream.receive(1 + 2 * at, b"x")
    with pytest.raises(CryptoBufferError, match="fragmented"):
        stream.receive(1_000, b"x")


def test_a_frame_that_repeats_some_and_touches_what_waits_completes_the_message():
    data, stream = message(30), CryptoStream(from_client=True)
    assert stream.receive(0, data[:8]) == b""
    assert stream.receive(20, data[20:30]) == b""
    assert stream.receive(5, data[5:20]) == b""
    assert stream.received == 30
    assert stream.receive(30, data[30:]) == data


def test_frames_without_progress_are_counted_until_a_message_is_whole():
    stream = CryptoStream(from_client=True)
    stream.receive(0, message(10)[:5])
    for _ in range(CRYPTO_FRAMES.pieces - 2):
        stream.receive(0, b"\x01")
    assert stream.receive(5, message(10)[5:]) == message(10)
    for _ in range(CRYPTO_FRAMES.pieces):
        stream.receive(0, b"\x01")
    with pytest.raises(CryptoBufferError, match="too many"):
        stream.receive(0, b"\x01")


@pytest.mark.parametrize(("from_client", "limit"), [(True, CLIENT_MESSAGE.bytes), (False, SERVER_MESSAGE.bytes)])
def test_a_message_is_refused_by_the_length_it_announces(from_client, limit):
    CryptoStream(from_client=from_client).receive(0, message(0, limit - 4))
    with pytest.raises(CryptoBufferError, match="too long"):
        CryptoStream(from_client=from_client).receive(0, message(0, limit - 3))


# Initial packets --------------------------------------------------------------------------------------------------------


def accepted(factory, frames, number=0, cid=bytes(8), owner=None):
    return factory.accept(initial(frames, cid, bytes(8), number), STRANGER, owner or Owner(), 1.0)


def refused_with(engine):
    engine.deliver()
    return engine._owner.error.error_code


def test_350_initials_with_gaps_cost_next_to_nothing():
    factory = server()
    engine = accepted(factory, gaps(150))
    packets = [initial(gaps(150, 1_000 + 300 * at), bytes(8), bytes(8), at) for at in range(1, 350)]
    before = time.process_time()
    for packet in packets:
        engine.receive(packet, STRANGER, 1.0)
    assert time.process_time() - before < 2  # measured: 0.02; it was 37
    assert refused_with(engine) == 0xD


@pytest.mark.parametrize(
    ("frames", "code"),
    [
        ([crypto_frame(0, message(8, 16_000_000))], 0xD),
        ([crypto_frame(1 << 40, b"x")], 0xD),
        ([b"\x01"] * (HANDSHAKE_PACKET_FRAMES.pieces + 1), 0xA),
        ([b"\x1c\x00\x00"], 0x7),
        ([crypto_frame(0, message(30))], 0x100 + 50),
    ],
    ids=["announces 16 MB", "offset", "frames", "cut off", "no ClientHello"],
)
def test_a_first_packet_that_breaks_a_rule_is_refused_at_once(frames, code):
    assert refused_with(accepted(server(), frames)) == code


def test_a_client_hello_in_many_frames_is_taken():
    client = AioquicFactory(QuicSettings(), None).connect(
        STRANGER, ClientTls(None, "stargate", insecure=True), Owner(), 1.0
    )
    hello = client_hello(client._handshake)
    frames = [crypto_frame(at, hello[at : at + 8]) for at in range(0, len(hello), 8)]
    packet = initial([*frames[1::2], b"\x01", *frames[::2]], bytes(8), client._handshake.host_cid)
    engine = server().accept(packet, STRANGER, Owner(), 1.0)
    engine.deliver()
    assert engine._owner.error is None
    assert len(engine.poll(1.0)) >= 1


@given(
    st.lists(
        st.lists(
            st.one_of(
                st.builds(crypto_frame, st.integers(0, 70_000), st.binary(max_size=40)),
                st.sampled_from([b"\x01", b"\x00", b"\x02\x00\x00\x00\x00", b"\x1c\x00\x00\x00", b"\x30"]),
                st.binary(min_size=1, max_size=30),
            ),
            min_size=1,
            max_size=20,
        ),
        min_size=1,
        max_size=8,
    )
)
@settings(max_examples=60)
def test_nobody_holds_more_by_any_initials_than_the_limits_say(flights):
    factory, owner, engine = server(), Owner(), None
    tracemalloc.start()
    try:
        for number, frames in enumerate(flights):
            packet = initial(frames, bytes(8), bytes(8), number)
            if engine is None:
                engine = factory.accept(packet, STRANGER, owner, 1.0)
            else:
                engine.receive(packet, STRANGER, 1.0)
                engine.deliver()
                engine.poll(1.0)
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 700_000
    if engine is not None:
        engine.abandon(gone())
        engine.deliver()
        engine.discard()


def gone():
    return ConnectionClosedError(None, "gone", by_peer=False)


# Nothing stays ----------------------------------------------------------------------------------------------------------


def objects_left(work):
    """How many objects the collector knows more of after `work`, while it is off."""
    logging.disable()  # pytest would keep a record of every line
    work()
    gc.collect()
    gc.disable()
    try:
        before = len(gc.get_objects())
        work()
        return len(gc.get_objects()) - before
    finally:
        gc.enable()
        logging.disable(logging.NOTSET)


@pytest.mark.parametrize(
    "frames",
    [[b"\x1c\x00\x00"], [b"\x30"], [crypto_frame(0, message(30))], [crypto_frame(5, b"x")], gaps(150)],
    ids=["cut off", "unknown", "no ClientHello", "waits", "gaps"],
)
def test_a_refused_or_forgotten_initial_leaves_no_object_without_a_collector(frames):
    factory = server()

    def work():
        for number in range(20):
            engine = accepted(factory, frames, cid=number.to_bytes(8, "big"))
            engine.deliver()
            engine.poll(1.0)
            engine.abandon(gone())
            engine.deliver()
            assert engine.finished
            engine.discard()

    assert objects_left(work) < 20


def test_a_packet_that_cannot_be_decrypted_leaves_no_object():
    factory = server()
    packet = bytearray(initial([crypto_frame(5, b"x")], size=1_200))
    packet[40] ^= 1

    def work():
        for _ in range(20):
            assert factory.accept(bytes(packet), STRANGER, Owner(), 1.0) is None

    assert objects_left(work) < 20


def exchanges(seed):
    """A world whose connection has had a few exchanges, was closed on both sides and forgotten."""
    world, far = World(seed).connect(), []

    def accept(stream):
        far.append(stream)
        return StreamRecorder()

    world.server.accept = accept
    for _ in range(3):
        near = StreamRecorder()
        world.client.engine.open_stream(near).write(b"request", fin=True)
        world.run(lambda: far, 5)
        far.pop().write(b"response", fin=True)
        world.run(lambda near=near: near.fin, 5)
    world.client.engine.shutdown(0, "done")
    world.run(lambda: world.client.engine.finished and world.server.engine.finished, 60)
    for node in (world.client, world.server):
        node.engine.discard()
        node.on_credit = node.accept = None
        node.world = None


def test_connections_with_streams_that_have_ended_leave_no_object():
    def work():
        for seed in range(5):
            exchanges(seed)

    assert objects_left(work) < 20


def test_a_connection_may_be_discarded_twice():
    engine = accepted(server(), [crypto_frame(5, b"x")])
    engine.abandon(gone())
    engine.deliver()
    for _ in range(2):
        engine.discard()
    assert engine.finished
    assert engine.poll(1.0) == []
    assert engine.deadline() is None
