"""The connection after the handshake: its keys, connection ids, paths and frames, where other tests do not lead."""

import json

import pytest
from aioquic.buffer import Buffer
from aioquic.quic.crypto import CryptoContext, next_key_phase
from aioquic.tls import CipherSuite as LibrarySuite
from hypothesis import given
from hypothesis import strategies as st

from support.quic_simulation import (
    CLIENT_ADDRESS,
    SimulatedNetwork,
    StreamRecorder,
    World,
    datagrams_of,
    nothing_left,
    sealed,
)
from tunnel_protocol.errors import ConnectionClosedError
from tunnel_protocol.quic.closing import MAX_REASON_BYTES, close_frame
from tunnel_protocol.quic.congestion import MAX_WINDOW_BYTES, Congestion
from tunnel_protocol.quic.connection_callbacks import ConnectionCallbacks, NullEngineCallbacks
from tunnel_protocol.quic.connection_ids import LocalConnectionIds, PeerConnectionId, PeerConnectionIds
from tunnel_protocol.quic.datagram_packets import split_datagram
from tunnel_protocol.quic.key_phases import KEY_UPDATE_PACKETS, KeyPhases
from tunnel_protocol.quic.packet_protection import CipherSuite, PacketProtection
from tunnel_protocol.quic.paths import Path, Paths
from tunnel_protocol.quic.qlog import describe_frames
from tunnel_protocol.quic.settings import QuicSettings
from tunnel_protocol.quic.stream_interface import Stream
from tunnel_protocol.quic.transport_error import TransportError
from tunnel_protocol.quic.varint import varint

try:
    from tunnel_protocol.quic.packet_speedups import open_packet, seal_packet
except ImportError:
    from tunnel_protocol.quic.packets import open_packet, seal_packet

SUITES = {
    CipherSuite.AES_128_GCM_SHA256: LibrarySuite.AES_128_GCM_SHA256,
    CipherSuite.AES_256_GCM_SHA384: LibrarySuite.AES_256_GCM_SHA384,
    CipherSuite.CHACHA20_POLY1305_SHA256: LibrarySuite.CHACHA20_POLY1305_SHA256,
}
CID = b"ourciden"


def connected(settings=None, server_settings=None, seed=1, **weather):
    settings = settings or QuicSettings()
    world = World(seed, SimulatedNetwork(delay_s=0.005, **weather), settings, server_settings or settings).connect()
    world.server.accept = world.client.accept = lambda _: StreamRecorder()
    world.run(lambda: nothing_left(world.client.engine) and nothing_left(world.server.engine), 5)
    return world


def tell(world, payload, *, first_flags=0):
    """The client says something; `first_flags` are set in the protected first byte."""
    engine, node = world.client.engine, world.server
    datagram = sealed(engine, payload)
    if first_flags:
        one_rtt = engine.one_rtt
        number = one_rtt.writer.next_number
        one_rtt.writer.next_number += 1
        datagram = seal_packet(0x41 | first_flags, one_rtt.peer_cids.current.cid, number, payload, one_rtt.keys.seals)
    node.engine.receive(datagram, CLIENT_ADDRESS, world.now)
    node.tick()


# Packet protection ------------------------------------------------------------------------------------------------------


def library_keys(suite, secret):
    context = CryptoContext()
    context.setup(cipher_suite=SUITES[suite], secret=secret, version=1)
    return context


@pytest.mark.parametrize("suite", SUITES)
def test_packets_of_every_cipher_suite_are_those_of_the_library_in_three_key_phases(suite):
    secret = bytes(range(48 if suite is CipherSuite.AES_256_GCM_SHA384 else 32))
    theirs = library_keys(suite, secret)
    ours, opening = PacketProtection(suite, secret, opens=False), PacketProtection(suite, secret, opens=True)
    for phase in range(3):
        header = bytes((0x41 | (phase & 1) << 2,)) + CID + (70_000).to_bytes(4, "big")[2:]
        packet = seal_packet(header[0], CID, 70_000, b"\x01" + bytes(20), ours.keys)
        assert packet == theirs.encrypt_packet(header, b"\x01" + bytes(20), 70_000)
        assert open_packet(packet, opening.keys, phase & 1, 70_000) == (70_000, b"\x01" + bytes(20))
        # Header protection stays; everything else follows from the next secret.
        mask = theirs.hp
        theirs = next_key_phase(theirs)
        theirs.hp = mask
        ours, opening = ours.following(), opening.following()


def key_phases():
    suite, secrets = CipherSuite.AES_128_GCM_SHA256, (bytes(32), bytes(range(32)))
    return [
        KeyPhases(PacketProtection(suite, one, opens=True), PacketProtection(suite, other, opens=False))
        for one, other in (secrets, secrets[::-1])
    ]


def test_packets_that_no_key_opens_end_the_connection_at_the_integrity_limit():
    ours, _ = key_phases()
    ours.failures = (1 << 36) - 3
    for _ in range(2):
        ours.not_opened()
    with pytest.raises(TransportError, match="authentication"):
        ours.not_opened()


@given(data=st.binary(min_size=29, max_size=60))
def test_a_forged_packet_of_any_phase_is_counted_and_changes_nothing(data):
    ours, _ = key_phases()
    ours.opened(0)
    assert ours.open_unusual(data, 5, 5) is None
    assert (ours.failures, ours.phase) == (1, 0)
    ours.update(7)
    assert ours.open_unusual(data, 5, 5) is None


def test_reserved_bits_are_refused_once_the_packet_is_known_to_be_the_peers():
    world = connected()
    tell(world, b"\x01\x00\x00\x00", first_flags=0x18)
    assert world.server.error.error_code == 0xA


def test_a_late_packet_of_the_key_phase_before_is_still_opened():
    world = connected()
    late = sealed(world.client.engine, b"\x08\x00late")
    world.client.engine.one_rtt.keys.sealed = KEY_UPDATE_PACKETS
    tell(world, b"\x01\x00\x00\x00")
    assert world.server.engine.one_rtt.keys.phase == 1
    opened = []
    world.server.accept = lambda _: opened.append(StreamRecorder()) or opened[-1]
    world.server.engine.receive(late, CLIENT_ADDRESS, world.now)
    world.server.tick()
    assert opened[0].received == b"late"


def test_a_peer_that_acknowledges_nothing_is_pinged_before_keys_wear_out():
    world = connected()
    engine = world.client.engine
    engine.one_rtt.keys.update(engine.one_rtt.writer.next_number)
    engine.one_rtt.keys.sealed = KEY_UPDATE_PACKETS
    sealed(engine, b"\x01\x00\x00")
    assert engine.one_rtt.connection_frames.ping


# Connection ids ---------------------------------------------------------------------------------------------------------


def peer_ids():
    return PeerConnectionIds(PeerConnectionId(0, b"first", b""))


@pytest.mark.parametrize(
    ("number", "prior", "cid", "code"), [(1, 0, b"", 0x7), (1, 0, bytes(21), 0x7), (1, 2, b"other", 0x7)]
)
def test_a_connection_id_that_breaks_a_rule_is_refused(number, prior, cid, code):
    with pytest.raises(TransportError) as raised:
        peer_ids().on_new(number, prior, cid, bytes(16))
    assert raised.value.error_code == code


def test_a_peer_without_connection_id_cannot_issue_one():
    ids = PeerConnectionIds(PeerConnectionId(0, b"", b""))
    with pytest.raises(TransportError, match="without"):
        ids.on_new(1, 0, b"other", bytes(16))


def test_too_many_connection_ids_are_refused():
    ids = peer_ids()
    for number in range(1, 8):
        ids.on_new(number, 0, bytes((number,)), bytes(16))
        ids.check()
    ids.on_new(8, 0, b"ninth", bytes(16))
    with pytest.raises(TransportError, match="Too many active"):
        ids.check()


def test_a_connection_id_that_was_retired_before_it_came_is_retired_at_once():
    ids = peer_ids()
    ids.on_new(5, 5, b"fifth", bytes(16))
    assert (ids.current.number, ids.to_retire) == (5, [0])
    ids.on_new(3, 0, b"third", bytes(16))
    assert ids.to_retire == [0, 3]
    assert not ids.change()
    assert ids.lend() is None


def test_ids_of_ours_are_retired_once_and_sent_again_only_while_they_are_in_use():
    made = iter(range(100))
    ids = LocalConnectionIds(b"first", 3, lambda: bytes((next(made),)))
    assert len(ids.issue()) == 2
    assert [ids.take_unsent()[0], ids.take_unsent()[0]] == [1, 2]
    assert ids.retire(1, b"first") is not None
    assert ids.retire(1, b"first") is None
    ids.on_lost(1)
    assert not ids.unsent
    ids.on_lost(2)
    assert list(ids.unsent) == [2]
    with pytest.raises(TransportError, match="current"):
        ids.retire(0, b"first")


def test_a_lost_retirement_is_sent_again_and_a_repeated_one_changes_nothing():
    world = connected()
    one_rtt = world.client.engine.one_rtt
    assert one_rtt.peer_cids.change()
    retired = one_rtt.peer_cids.to_retire[0]
    world.weather.drop = lambda sender, _: sender == "client"
    world.pending[world.client] = None
    one_rtt.ping()
    world.idle(0.001)
    assert not one_rtt.peer_cids.to_retire
    world.weather.drop = None
    world.run(lambda: nothing_left(world.client.engine), 5)
    assert retired not in world.server.engine.one_rtt.local_cids.active.values()
    tell(world, b"\x19" + varint(retired) + b"\x00")
    assert world.server.error is None


def test_a_peer_that_uses_another_of_our_ids_is_answered_with_another_of_its_own():
    world = connected()
    before = world.server.engine.one_rtt.peer_cids.current.number
    assert world.client.engine.one_rtt.peer_cids.change()
    tell(world, b"\x01\x00\x00\x00")
    assert world.server.engine.one_rtt.peer_cids.current.number != before
    world.run(lambda: nothing_left(world.client.engine) and nothing_left(world.server.engine), 5)
    assert world.client.error is None


def test_an_update_of_our_own_is_in_the_trace(tmp_path):
    world = connected(QuicSettings(qlog_dir=tmp_path), QuicSettings())
    world.client.engine.one_rtt.keys.sealed = KEY_UPDATE_PACKETS
    tell(world, b"\x01\x00\x00\x00")
    assert world.client.engine.one_rtt.keys.phase == world.server.engine.one_rtt.keys.phase == 1


def test_a_peer_that_probes_a_path_and_moves_there_with_another_id_gets_the_id_that_was_lent_to_the_path():
    world = connected()
    client, server = world.client.engine, world.server.engine
    there = ("198.51.100.7", 7_000)
    server.receive(sealed(client, b"\x1a" + bytes(8)), there, world.now)
    world.server.tick()
    (path,) = server.one_rtt.paths.others
    lent = path.peer_cid
    assert lent is not None
    assert client.one_rtt.peer_cids.change()
    server.receive(sealed(client, b"\x01\x00\x00\x00"), there, world.now)
    world.server.tick()
    assert server.peer_address == there
    assert server.one_rtt.peer_cids.current is lent


# Paths ------------------------------------------------------------------------------------------------------------------


def test_the_last_validated_path_is_restored_and_its_connection_id_given_back():
    ids = peer_ids()
    for number in range(1, 4):
        ids.on_new(number, 0, bytes((number,)), bytes(16))
    paths = Paths(Path(("a", 1), is_validated=True), ids)
    other = paths.add(("b", 2))
    other.peer_cid = ids.lend()
    third = paths.add(("c", 3))
    third.peer_cid = ids.lend()
    paths.promote(other)
    assert (ids.current.number, ids.to_retire, ids.reserved) == (1, [0], 1)
    assert paths.validate(b"unknown!") is None
    assert paths.validate(third.new_challenge()) is third
    paths.others[-1].is_validated = False
    assert paths.restore()
    assert paths.active is third
    assert (ids.reserved, ids.to_retire) == (0, [0, 2])
    paths.others.clear()
    assert not paths.restore()


def test_ids_lent_to_paths_are_given_back_when_the_peer_retires_them_or_the_path_is_forgotten():
    ids = peer_ids()
    for number in range(1, 4):
        ids.on_new(number, 0, bytes((number,)), bytes(16))
    paths = Paths(Path(("a", 1), is_validated=True), ids)
    for at in range(7):
        path = paths.add(("b", at))
        path.is_validated = at == 0
        if at < 2:
            path.peer_cid = ids.lend()
    paths.retire_below(2)
    assert (ids.reserved, ids.to_retire) == (1, [1])
    paths.add(("c", 1))  # the oldest that is not validated goes
    assert (ids.reserved, ids.to_retire) == (0, [1, 2])
    assert paths.known(("b", 0)) is not None
    assert paths.known(("b", 1)) is None


# Frames and datagrams ---------------------------------------------------------------------------------------------------

LONG = b"\xc0\x00\x00\x00\x01\x08" + bytes(8) + b"\x00"


def long_packet(kind=0xC0, token=b"", body=bytes(20)):
    middle = varint(len(token)) + token if kind & 0x30 == 0 else b""
    return bytes((kind,)) + LONG[1:] + middle + varint(len(body)) + body


SHORT = b"\x41" + bytes(30)


@pytest.mark.parametrize(
    ("data", "long", "short"),
    [
        (SHORT, b"", SHORT),
        (long_packet(), long_packet(), b""),
        (long_packet(token=b"abc") + long_packet(0xE0) + SHORT, long_packet(token=b"abc") + long_packet(0xE0), SHORT),
        (long_packet() + bytes(40), long_packet() + bytes(40), b""),
        (long_packet(0xF0) + SHORT, long_packet(0xF0) + SHORT, b""),
        (b"\xc0\x00\x00\x00\x02" + bytes(30), b"\xc0\x00\x00\x00\x02" + bytes(30), b""),
        (b"\xc0\x00\x00\x00\x01\x15" + bytes(40), b"\xc0\x00\x00\x00\x01\x15" + bytes(40), b""),
        (long_packet()[:-1], long_packet()[:-1], b""),
        (b"", b"", b""),
    ],
    ids=["short", "long", "all", "padding", "retry", "version", "cid", "cut", "nothing"],
)
def test_a_datagram_is_split_before_its_short_header_packet(data, long, short):
    assert split_datagram(data) == (long, short)


@given(st.binary(max_size=120))
def test_any_datagram_is_split_without_an_error_and_without_loss(data):
    long, short = split_datagram(data)
    assert long + short == data


FRAMES = {
    b"\x00\x00\x00": "padding",
    b"\x01": "ping",
    b"\x02\x05\x00\x01\x00\x00\x00": "ack",
    b"\x03\x05\x00\x00\x00\x01\x02\x03": "ack",
    b"\x04\x00\x01\x02": "reset_stream",
    b"\x05\x00\x01": "stop_sending",
    b"\x06\x00\x02hi": "crypto",
    b"\x07\x02hi": "new_token",
    b"\x0f\x00\x05\x02hi": "stream",
    b"\x10\x05": "max_data",
    b"\x11\x00\x05": "max_stream_data",
    b"\x12\x05": "max_streams",
    b"\x14\x05": "data_blocked",
    b"\x15\x00\x05": "stream_data_blocked",
    b"\x17\x05": "streams_blocked",
    b"\x18\x01\x00\x04cid!" + bytes(16): "new_connection_id",
    b"\x19\x00": "retire_connection_id",
    b"\x1a" + bytes(8): "path_challenge",
    b"\x1c\x0a\x00\x02no": "connection_close",
    b"\x1d\x0a\x02no": "connection_close",
    b"\x1e": "handshake_done",
}


def test_qlog_names_every_frame_and_stops_at_what_it_cannot_read():
    described = describe_frames(b"".join(FRAMES) + b"\x30rest")
    assert [frame["frame_type"] for frame in described] == [*FRAMES.values(), "unknown"]
    assert json.dumps(described)


@given(st.binary(max_size=200))
def test_qlog_describes_any_payload(payload):
    assert json.dumps(describe_frames(payload)) is not None


@pytest.mark.parametrize(
    ("payload", "code"),
    [
        (b"\x1a\x00\x00", 0x7),
        (b"\x08\x41", 0x7),
        (b"\x0a\x00\x05ab", 0x7),
        (b"\x0a\x04\x05ab", 0x7),
        (b"\x12" + b"\xff" * 8, 0x7),
        (b"\x16" + b"\xff" * 8, 0x7),
        (b"\x18\x01\x00\x08abc", 0x7),
        (b"\x1c\x00\x00\x05ab", 0x7),
        (b"\x05\x02\x00\x00", 0x5),
        (b"\x04\x03\x00\x00", 0x5),
        (b"\x11\x02\x05\x00", 0x5),
    ],
)
def test_a_frame_that_breaks_a_rule_ends_the_connection(payload, code):
    world = connected()
    tell(world, payload)
    assert world.server.error.error_code == code


def test_a_session_ticket_cut_short_ends_the_connection():
    world = connected()
    world.client.engine.receive(sealed(world.server.engine, b"\x06\x00\x05ab"), world.server.address, world.now)
    world.client.tick()
    assert world.client.error.error_code == 0x7


def test_a_reason_is_cut_to_what_fits_and_stays_text():
    frame = close_frame(5, None, "ä" * 2_000)
    buf = Buffer(data=frame[1:])
    assert (frame[0], buf.pull_uint_var()) == (0x1D, 5)
    assert buf.pull_bytes(buf.pull_uint_var()).decode() == "ä" * (MAX_REASON_BYTES // 2)


# The handshake and the connection together ------------------------------------------------------------------------------


def test_1_rtt_packets_that_come_before_the_end_of_the_handshake_are_kept():
    world = World(1, SimulatedNetwork(delay_s=0.005))
    held = []

    def reorder(sender, data):
        """What the client sends with its last packet of the handshake arrives before it."""
        if sender == "client" and data[0] & 0x80 and world.server.engine is not None and not held:
            held.append(data)
            return True
        return False

    world.weather.drop = reorder
    world.server.accept = lambda _: StreamRecorder()
    opened = []
    world.server.accept = lambda _: opened.append(StreamRecorder()) or opened[-1]
    world.start()
    world.run(lambda: world.client.established, 5)
    world.client.engine.open_stream(StreamRecorder()).write(b"early", fin=True)
    for data, address in datagrams_of(world.client.engine.poll(world.now)):
        world.send(world.client, data, address)
    world.idle(0.02)
    assert held
    assert not world.server.established
    world.server.engine.receive(held[0], CLIENT_ADDRESS, world.now)
    world.server.tick()
    assert opened[0].received == b"early"


def test_more_early_packets_than_the_bound_are_dropped():
    world = World(1, SimulatedNetwork(delay_s=0.005))
    world.weather.drop = lambda sender, _: sender == "server"
    world.start()
    world.run(lambda: world.server.engine is not None, 5)
    for _ in range(10):
        world.server.engine.receive(SHORT, CLIENT_ADDRESS, world.now)
    assert len(world.server.engine._early) == 4


def test_a_handshake_that_is_closed_by_the_server_after_its_end_for_the_client_ends_the_connection():
    world = World(1, SimulatedNetwork(delay_s=0.005))
    world.weather.drop = lambda sender, _: sender == "client" and world.client.established
    world.start()
    world.run(lambda: world.client.established, 5)
    world.server.engine.shutdown(7, "no")
    world.server.tick()
    world.run(lambda: world.client.error is not None, 5)
    assert world.client.error.by_peer


def test_an_engine_that_is_let_go_in_its_handshake_is_silent():
    world = World(1, SimulatedNetwork(delay_s=0.005))
    world.start()
    engine = world.client.engine
    engine.ping()
    assert engine.peer_address == world.server.address
    assert (engine.free_streams, engine.open_streams, engine.smoothed_rtt_ms) == (0, 0, 0.0)
    assert engine.open_stream(StreamRecorder()) is None
    assert not engine.is_reset(bytes(40))
    engine.datagram_refused(1_400, world.now)
    engine.abandon(ConnectionClosedError(None, "enough", by_peer=False))
    engine.abandon(ConnectionClosedError(None, "again", by_peer=False))
    world.client.tick()
    assert world.client.error.reason == "enough"
    engine.handle_timer(world.now + 100)
    assert engine.finished
    engine.shutdown(1, "late")
    assert engine.poll(world.now) == []


def test_a_handshake_without_an_answer_ends_by_itself():
    world = World(1, SimulatedNetwork(loss=1.0), QuicSettings(idle_timeout_ms=2_000))
    world.start()
    world.run(lambda: world.client.error is not None, 20)
    assert (world.client.error.error_code, world.client.error.reason) == (None, "idle timeout")


def test_packets_of_no_use_are_dropped(tmp_path):
    world = connected(QuicSettings(qlog_dir=tmp_path), QuicSettings())
    client, server = world.client.engine, world.server.engine
    before = client.one_rtt.received.expected
    client.receive(sealed(server, b"\x01\x00\x00\x00"), ("203.0.113.5", 5), world.now)  # a server does not move
    client.receive(b"\x41" + bytes(20), world.server.address, world.now)  # too short
    client.receive(b"\x41" + bytes(60), world.server.address, world.now)  # not one of its connection ids
    client.receive(long_packet() + SHORT, world.server.address, world.now)  # the handshake is over
    assert client.one_rtt.received.expected == before
    server.one_rtt.keys.sealed = KEY_UPDATE_PACKETS
    client.receive(sealed(server, b"\x01\x00\x00\x00"), world.server.address, world.now)
    client.shutdown(0, "")
    client.handle_timer(world.now)
    world.client.tick()
    world.run(lambda: client.finished and server.finished, 60)
    world.client_factory.close()
    world.server_factory.close()
    text = "".join(path.read_text() for path in tmp_path.glob("*.qlog"))
    assert "unknown_server_address" in text
    assert "key_updated" in text


def test_a_connection_that_is_discarded_tells_nobody_and_a_late_timer_does_nothing():
    world = connected()
    engine = world.client.engine
    stream = engine.open_stream(StreamRecorder())
    engine.discard()
    told = dict(world.pending)
    stream.write(b"x")
    assert engine.one_rtt.poll(world.now) is not None
    engine.deliver()
    assert world.pending == told
    engine.abandon(ConnectionClosedError(None, "over", by_peer=False))
    engine.handle_timer(world.now + 1)
    assert engine.deadline() is None


def test_callbacks_that_stand_for_nobody_do_nothing():
    callbacks, owner = ConnectionCallbacks(), NullEngineCallbacks()
    callbacks.schedule_poll()
    callbacks.on_ack_frame((0, 0, [(0, 0)], 0), 0.0)
    callbacks.on_local_id_retired(b"")
    owner.on_work()
    owner.on_established()
    assert owner.on_peer_stream(Stream(0)) is None
    owner.on_stream_credit()
    owner.on_connection_id(b"")
    owner.on_connection_id_retired(b"")
    owner.on_closed(ConnectionClosedError(None, "", by_peer=False))


# Congestion control -----------------------------------------------------------------------------------------------------


def test_the_window_follows_cubic_after_a_loss():
    """The figures of RFC 9438 figure 1: a cubic curve that passes the old maximum after K seconds."""
    congestion = Congestion(1_200)
    congestion.window = 1_200_000
    congestion.on_lost(1.0, 1.0)
    assert congestion.window == 840_000
    congestion.on_lost(0.9, 1.1)
    assert congestion.window == 840_000, "one event"
    k = ((1_000 - 700) / 0.4) ** (1 / 3)
    now = 2.0
    while now < 2.0 + k:
        congestion.on_acked(84_000, now, now, 0.1)
        now += 0.01
    assert 1_150_000 < congestion.window < 1_260_000
    while now < 2.0 + 3 * k:
        congestion.on_acked(84_000, now, now, 0.1)
        now += 0.01
    assert congestion.window > 2_000_000


def test_the_window_grows_in_slow_start_to_its_bound_and_begins_anew_after_persistent_congestion():
    congestion = Congestion(1_200)
    assert congestion.window == 12_000
    for at in range(20_000):
        congestion.on_acked(1_200, float(at), float(at), 0.1)
    assert MAX_WINDOW_BYTES <= congestion.window < MAX_WINDOW_BYTES + 1_200
    congestion.on_persistent_congestion()
    assert congestion.window == 2_400


def test_nothing_getting_through_for_long_is_persistent_congestion():
    world = connected(QuicSettings(idle_timeout_ms=200_000))
    stream = world.client.engine.open_stream(StreamRecorder())
    stream.write(bytes(400_000))
    world.idle(0.5)
    world.weather.loss = 1.0
    stream.write(bytes(400_000))
    world.idle(20)
    world.weather.loss = 0.0
    smallest = [1 << 40]

    def look(*_):
        smallest[0] = min(smallest[0], world.client.engine.one_rtt.congestion.window)
        return False

    world.weather.drop = look
    world.run(lambda: nothing_left_to_send(stream), 60)
    assert smallest[0] <= 2 * 1_452


def nothing_left_to_send(stream):
    return stream.send_half.unsent_bytes == 0 and stream.send_half.sent == 800_000
