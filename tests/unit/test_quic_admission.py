"""What a stranger's datagram brings about: Retry, a connection, a refusal, a reset; who makes way for whom."""

import os
import time

import pytest
from aioquic.buffer import Buffer
from aioquic.quic.packet import QuicPacketType, get_retry_integrity_tag, pull_quic_header
from hypothesis import given
from hypothesis import strategies as st

from tunnel_protocol.quic.address_validation import (
    TOKEN_BYTES,
    TOKEN_LIFE_S,
    AddressValidation,
    InitialHeader,
    StatelessResets,
    reset_key,
)
from tunnel_protocol.quic.admission import (
    ANSWERS,
    REFUSALS,
    SETTLED_S,
    UNPROVED,
    UNPROVED_PER_ADDRESS,
    UNPROVED_PER_PREFIX,
    UNPROVED_PER_SECOND,
    Admission,
    Admitted,
    HalfOpen,
)
from tunnel_protocol.quic.sources import Source, SourceQueue, source_of
from tunnel_protocol.quic.tls import ServerTls
from tunnel_protocol.quic.varint import varint

CLIENT = ("192.0.2.1", 4000)
SOMEWHERE = source_of("203.0.113.1")


class Factory:
    """The part of `EngineFactory` that admission needs."""

    reset_key = b"key of resets"
    refusal_bytes = 60

    def starts_connection(self, data):
        return len(data) >= 1_200 and data[1:5] == b"\0\0\0\1"

    def answer_version(self, data):
        return b"versions" if len(data) >= 1_200 else None

    def refuse(self, data, error_code):
        return bytes([error_code]) * self.refusal_bytes if self.refusal_bytes else None


def admission(max_half_open=1_024):
    return Admission(Factory(), max_half_open)


def initial(token=b"", dcid=None, scid=b"peer", size=1_200):
    dcid = os.urandom(8) if dcid is None else dcid
    head = b"\xc3\0\0\0\1" + bytes([len(dcid)]) + dcid + bytes([len(scid)]) + scid + varint(len(token)) + token
    return head.ljust(size, b"\0")


def retried(packet):
    """A client's second Initial, after this Retry."""
    header = pull_quic_header(Buffer(data=packet))
    assert header.packet_type is QuicPacketType.RETRY
    return initial(header.token, header.source_cid, header.destination_cid)


def address(n):
    """Addresses of different /24 networks."""
    return (f"10.{n >> 8}.{n & 255}.1", 4000)


def fill(one, sources, *, proved=False, now=0.0):
    for n, host in enumerate(sources):
        one.half_open.add((host, n), source_of(host), proved=proved, now=now)


# --- sources ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other", "same_address", "same_prefix"),
    [
        ("192.0.2.1", "192.0.2.1", True, True),
        ("192.0.2.1", "192.0.2.2", False, True),
        ("192.0.2.1", "192.0.3.1", False, False),
        ("2001:db8::1", "2001:db8::ffff:2", True, True),
        ("2001:db8:0:1::1", "2001:db8:0:2::1", False, True),
        ("2001:db8:1::1", "2001:db8:2::1", False, False),
        ("::ffff:192.0.2.1", "192.0.2.1", True, True),
        ("::ffff:192.0.2.1", "::ffff:192.0.3.1", False, False),
        ("fe80::1%eth0", "fe80::2", True, True),
        ("somewhere", "what:ever", True, True),
    ],
)
def test_who_counts_as_one_source(one, other, same_address, same_prefix):
    assert (source_of(one).address == source_of(other).address) is same_address
    assert (source_of(one).prefix == source_of(other).prefix) is same_prefix


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 4), st.booleans())))
def test_the_queue_counts_as_a_list_would_and_keeps_nothing_of_who_has_left(steps):
    queue, model = SourceQueue(), {}
    for member, host, arrives in steps:
        source = Source(bytes([host]), bytes([host // 2]))
        if arrives and member not in model:
            queue.add(member, source)
            model[member] = source
        elif not arrives:
            assert queue.discard(member) is (model.pop(member, None) is not None)
        assert len(queue) == len(model)
        assert (member in queue) is (member in model)
        assert queue.at_address(source) == sum(one.address == source.address for one in model.values())
        assert queue.at_prefix(source) == sum(one.prefix == source.prefix for one in model.values())
        assert list(queue) == list(model)
        of_the_address = [one for one in model if model[one].address == source.address]
        assert queue.oldest_at_address(source) == next(iter(of_the_address), None)
        assert queue.sources == len({one.address for one in model.values()})
        expendable = queue.most_expendable()
        if not model:
            assert expendable is None
        else:
            most = max(queue.at_address(one) for one in model.values())
            assert queue.at_address(model[expendable]) == most
            of_the_most = (one for one in model if queue.at_address(model[one]) == most)
            assert next(of_the_most) == expendable
    for member in list(model):
        queue.discard(member)
    assert [queue._members, queue._by_address, queue._by_prefix] == [{}, {}, {}]


# --- Retry -----------------------------------------------------------------------------------------------------------


def retry(validation, data=None, at=CLIENT, now=0.0):
    return validation.retry(InitialHeader.parse(data or initial()), at, now)


@pytest.mark.parametrize("dcid", [b"12345678", bytes(range(20))])
def test_a_retry_is_what_rfc_9001_says_and_its_token_brings_the_original_id_back(dcid):
    validation = AddressValidation()
    packet = retry(validation, initial(dcid=dcid))
    header = pull_quic_header(Buffer(data=packet))
    assert header.packet_type is QuicPacketType.RETRY
    assert header.destination_cid == b"peer"
    assert len(header.token) == TOKEN_BYTES
    assert header.integrity_tag == get_retry_integrity_tag(packet[:-16], dcid, version=1)
    second = InitialHeader.parse(retried(packet))
    assert validation.original_cid(second, CLIENT, TOKEN_LIFE_S) == dcid


@pytest.mark.parametrize(
    ("at", "now"),
    [(("192.0.2.2", 4000), 0.0), (("192.0.2.1", 4001), 0.0), (CLIENT, TOKEN_LIFE_S + 0.01)],
)
def test_a_token_is_good_for_one_address_and_a_short_time(at, now):
    validation = AddressValidation()
    assert validation.original_cid(InitialHeader.parse(retried(retry(validation))), at, now) is None


def test_a_token_is_good_for_the_id_of_its_retry_and_the_endpoint_that_made_it():
    validation = AddressValidation()
    second = InitialHeader.parse(retried(retry(validation)))
    assert validation.original_cid(second._replace(destination_cid=b"87654321"), CLIENT, 0.0) is None
    assert AddressValidation().original_cid(second, CLIENT, 0.0) is None


@given(st.integers(0, TOKEN_BYTES * 8 - 1), st.binary(max_size=80))
def test_no_other_token_passes(bit, other):
    validation = AddressValidation()
    second = InitialHeader.parse(retried(retry(validation)))
    flipped = bytearray(second.token)
    flipped[bit // 8] ^= 1 << bit % 8
    for token in (bytes(flipped), other, second.token[:-1], second.token + b"\0"):
        assert validation.original_cid(second._replace(token=token), CLIENT, 0.0) is None


@given(st.binary(max_size=70), st.integers(0, 70))
def test_headers_are_read_as_aioquic_reads_them(data, cut):
    for one in (data, initial(data[:40])[:cut], b"\xc0\0\0\0\1" + data):
        header = InitialHeader.parse(one)
        if header is None:
            continue
        # aioquic wants the length of the packet, too, which a client's first packet has and these may not.
        try:
            theirs = pull_quic_header(Buffer(data=one + b"\0"), host_cid_length=8)
        except ValueError:
            continue
        assert theirs.packet_type is QuicPacketType.INITIAL
        assert header == (theirs.destination_cid, theirs.source_cid, theirs.token)


@pytest.mark.parametrize("size", range(25))
def test_a_header_that_is_cut_short_is_none(size):
    whole = initial(b"token", b"12345678", b"peer")
    assert InitialHeader.parse(whole[:size]) is None
    assert InitialHeader.parse(whole) == (b"12345678", b"peer", b"token")


def test_ids_longer_than_ids_are_make_no_header():
    assert InitialHeader.parse(initial(dcid=bytes(21))) is None
    assert InitialHeader.parse(initial(scid=bytes(21))) is None


# --- who gets in -----------------------------------------------------------------------------------------------------


def test_in_calm_times_nobody_has_to_prove_anything():
    assert admission().decide(initial(), CLIENT, 0.0, accepting=True) == Admitted(source_of("192.0.2.1"), None)


def test_one_address_under_pressure_leaves_its_neighbours_their_quick_way_in():
    one = admission()
    fill(one, [CLIENT[0]] * UNPROVED_PER_ADDRESS.pieces)
    assert isinstance(one.decide(initial(), CLIENT, 0.0, accepting=True), bytes)
    assert isinstance(one.decide(initial(), ("192.0.2.2", 1), 0.0, accepting=True), Admitted)


def test_one_network_under_pressure_leaves_the_others_their_quick_way_in():
    one = admission()
    fill(one, [f"192.0.2.{n}" for n in range(UNPROVED_PER_PREFIX.pieces)])
    assert isinstance(one.decide(initial(), ("192.0.2.200", 1), 0.0, accepting=True), bytes)
    assert isinstance(one.decide(initial(), ("192.0.3.200", 1), 0.0, accepting=True), Admitted)


def test_under_pressure_from_many_networks_everybody_must_prove_their_address():
    one = admission()
    fill(one, [address(n)[0] for n in range(UNPROVED.pieces)])
    data = initial(dcid=b"original")
    packet = one.decide(data, CLIENT, 0.0, accepting=True)
    assert one.retries == 1
    assert one.decide(retried(packet), CLIENT, 0.1, accepting=True) == Admitted(source_of(CLIENT[0]), b"original")


def test_handshakes_that_fail_at_once_are_pressure_too():
    one = admission()
    decisions = [one.decide(initial(), address(n), 5.0, accepting=True) for n in range(UNPROVED_PER_SECOND.pieces + 20)]
    assert sum(isinstance(decision, Admitted) for decision in decisions) == UNPROVED_PER_SECOND.pieces
    assert sum(isinstance(decision, bytes) for decision in decisions) == 20
    assert isinstance(one.decide(initial(), CLIENT, 5.5, accepting=True), Admitted)


def test_a_thousand_clients_of_one_address_get_in_while_it_floods():
    """The flood is of 5,000 first packets; each client proves its address, and no other bound is in its way."""
    one = admission()
    admitted = 0
    for turn in range(5_000):
        now = turn / 1_000
        decision = one.decide(initial(), ("192.0.2.1", turn % 60_000), now, accepting=True)
        if isinstance(decision, Admitted):
            one.half_open.add(("flood", turn), decision.source, proved=False, now=now)
        if turn % 5 == 0:
            client = ("192.0.2.1", 60_000 + turn // 5)
            decision = one.decide(initial(), client, now, accepting=True)
            assert isinstance(decision, bytes) == (turn > 10 or turn == 10)
            if isinstance(decision, bytes):
                decision = one.decide(retried(decision), client, now, accepting=True)
            assert isinstance(decision, Admitted)
            if one.half_open.full:
                victim = one.half_open.makes_way(decision.source, now)
                assert victim[0] == "flood"
                one.half_open.discard(victim)
            one.half_open.add(("client", turn), decision.source, proved=decision.original_cid is not None, now=now)
            admitted += 1
    assert admitted == 1_000


def test_a_token_of_another_life_is_answered_with_invalid_token_so_that_the_client_starts_anew():
    stale = retried(retry(AddressValidation()))
    assert admission().decide(stale, CLIENT, 0.0, accepting=True) == b"\x0b" * 60


def test_a_token_of_some_other_make_proves_nothing_and_harms_nothing():
    one = admission()
    assert one.decide(initial(b"NEW_TOKEN of somebody"), CLIENT, 0.0, accepting=True).original_cid is None


def test_who_does_not_accept_refuses():
    assert admission().decide(initial(), CLIENT, 0.0, accepting=False) == b"\x02" * 60


def test_refusals_are_bounded_in_number():
    one = admission()
    answers = [one.decide(initial(), CLIENT, 5.0, accepting=False) for _ in range(REFUSALS.pieces + 50)]
    assert sum(answer is not None for answer in answers) == REFUSALS.pieces
    assert one.decide(initial(), CLIENT, 5.1, accepting=False) is not None


@pytest.mark.parametrize("size", [0, 3_601])
def test_a_refusal_that_cannot_be_made_or_would_amplify_is_not_sent(size):
    one = admission()
    one._factory.refusal_bytes = size
    assert one.decide(initial(), CLIENT, 0.0, accepting=False) is None


def test_version_negotiations_and_resets_are_bounded_in_number():
    other = b"\xc0\x1a\x2a\x3a\x4a".ljust(1_200, b"\0")
    for data in (other, b"\x40".ljust(60, b"x")):
        one = admission()
        answers = [one.decide(data, CLIENT, 5.0, accepting=True) for _ in range(ANSWERS.pieces + 50)]
        assert sum(answer is not None for answer in answers) == ANSWERS.pieces
        assert one.decide(data, CLIENT, 6.0, accepting=True) is not None


@given(st.binary(min_size=1, max_size=1_500), st.booleans(), st.sampled_from([b"", b"\xc3\0\0\0\1\x08", b"\x41"]))
def test_no_answer_is_longer_than_three_times_its_cause(data, accepting, start):
    one = admission(max_half_open=2)
    fill(one, ["10.0.0.1", "10.0.0.2"])
    for datagram in (start + data, (start + data).ljust(1_200, b"\0")):
        decision = one.decide(datagram, CLIENT, 0.0, accepting=accepting)
        if isinstance(decision, bytes):
            assert len(decision) <= 3 * len(datagram)


def test_what_looks_like_a_first_packet_and_cannot_be_read_is_ignored():
    data = b"\xc3\0\0\0\1\x08" + bytes(8) + b"\xff"
    assert admission().decide(data.ljust(1_200, b"\xff"), CLIENT, 0.0, accepting=True) is None


def test_an_answer_costs_microseconds():
    """Measured: 20 µs on a quiet machine. The bound is fifty times that."""
    one = admission()
    fill(one, [CLIENT[0]] * UNPROVED_PER_ADDRESS.pieces)
    packets = [initial() for _ in range(1_000)]
    began = time.process_time()
    for data in packets:
        assert isinstance(one.decide(data, CLIENT, 0.0, accepting=True), bytes)
    assert time.process_time() - began < 1.0


# --- who makes way ---------------------------------------------------------------------------------------------------


def test_proof_makes_those_without_it_go_first_and_then_the_oldest_of_the_most_frequent_address():
    half_open = HalfOpen(6)
    half_open.add("unproved", source_of("10.0.0.1"), proved=False, now=0.0)
    for name, host in (("a1", "10.0.1.1"), ("b1", "10.0.2.1"), ("b2", "10.0.2.1"), ("b3", "10.0.2.1")):
        half_open.add(name, source_of(host), proved=True, now=0.0)
    half_open.add("a2", source_of("10.0.1.1"), proved=True, now=1.0)
    assert half_open.full
    gone = []
    while (name := half_open.makes_way(SOMEWHERE, SETTLED_S)) is not None:
        gone.append(name)
        assert half_open.discard(name)
    assert gone == ["unproved", "b1", "a1", "b2", "b3"]
    assert half_open.makes_way(SOMEWHERE, SETTLED_S + 1.0) == "a2"
    assert "a2" in half_open
    assert not half_open.discard("b1")


def test_a_handshake_with_proof_is_given_time_to_go_on():
    half_open = HalfOpen(1)
    assert half_open.makes_way(SOMEWHERE, 0.0) is None
    half_open.add("a", source_of("10.0.0.1"), proved=True, now=10.0)
    assert half_open.must_prove(source_of("10.0.0.2"))
    assert half_open.makes_way(SOMEWHERE, 10.0 + SETTLED_S - 0.01) is None
    assert half_open.makes_way(SOMEWHERE, 10.0 + SETTLED_S) == "a"


def test_an_address_that_has_most_of_the_places_gives_one_up_at_once_and_only_to_others():
    half_open = HalfOpen(1_024)
    for n in range(1_024):
        half_open.add(n, source_of("192.0.2.1"), proved=True, now=0.0)
    assert half_open.makes_way(source_of("192.0.2.1"), 0.5) is None
    assert half_open.makes_way(source_of("192.0.2.2"), 0.5) == 0


@given(
    st.lists(
        st.tuples(st.sampled_from(["stranger", "proves", "completes", "rests"]), st.integers(0, 40), st.integers(0, 9)),
        max_size=80,
    )
)
def test_whoever_floods_a_client_that_proves_its_address_gets_a_place(steps):
    """Few places, floods from any mixture of addresses with and without proof, and one honest client after each step."""
    one, now = admission(max_half_open=8), 100.0

    def begin(decision, name):
        if one.half_open.full:
            gone = one.half_open.makes_way(decision.source, now)
            if gone is None:
                return False
            assert gone in one.half_open
            one.half_open.discard(gone)
        one.half_open.add(name, decision.source, proved=decision.original_cid is not None, now=now)
        return True

    for serial, (step, host, port) in enumerate(steps):
        client = (f"10.0.{host}.1", port)
        decision = one.decide(initial(), client, now, accepting=True)
        if isinstance(decision, bytes) and step == "proves":
            decision = one.decide(retried(decision), client, now, accepting=True)
            assert isinstance(decision, Admitted)
        if isinstance(decision, Admitted):
            begin(decision, serial)
        if step == "completes" and len(one.half_open):
            one.half_open.discard(next(iter(one.half_open._since)))
        if step == "rests":
            now += SETTLED_S
        assert len(one.half_open) <= 8
        assert len(one.half_open.unproved) <= 4
    # An honest client is let in at once, or after the time in which the others could have gone on.
    honest = ("192.0.2.1", 1)
    for _ in range(2):
        decision = one.decide(initial(), honest, now, accepting=True)
        if isinstance(decision, bytes):
            decision = one.decide(retried(decision), honest, now, accepting=True)
        if begin(decision, "honest"):
            break
        now += SETTLED_S
    assert "honest" in one.half_open


# --- stateless resets ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [22, 23, 40, 43, 60, 1_452])
def test_a_reset_is_shorter_than_its_cause_and_ends_with_the_token_of_the_id(size):
    resets = StatelessResets(b"key")
    packet = resets.packet((b"\x4012345678").ljust(size, b"x"))
    assert 21 <= len(packet) < size
    assert packet[0] & 0xC0 == 0x40
    assert packet[-16:] == resets.token(b"12345678")


@pytest.mark.parametrize("data", [b"\x40".ljust(21, b"x"), b"\x00".ljust(60, b"x"), b"\xc0".ljust(60, b"x")])
def test_nothing_else_is_answered_with_a_reset(data):
    assert StatelessResets(b"key").packet(data) is None


@given(st.binary(min_size=1, max_size=1_500))
def test_two_endpoints_that_do_not_know_each_other_fall_silent(data):
    ends = [StatelessResets(b"one"), StatelessResets(b"other")]
    packet, turns = b"\x40" + data, 0
    while (packet := ends[turns % 2].packet(packet)) is not None:
        turns += 1
    assert turns <= 22


def test_tokens_survive_a_restart_with_the_same_private_key_on_the_same_host_only(monkeypatch):
    one, other = ServerTls(b"cert", b"key"), ServerTls(b"cert", b"another key")
    assert reset_key(one) == reset_key(one) != reset_key(other)
    assert reset_key(None) != reset_key(None)
    before = reset_key(one)
    monkeypatch.setattr("platform.node", lambda: "replica-2")
    assert reset_key(one) != before
