"""The compiled form of the canonical layouts and its Python twin do the same, whatever they are given."""

import itertools

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from support.capnp_layouts import COMPILED, BodyReceiver, needs_compiled, outcome
from tunnel_protocol import capnp_layouts, message_reader
from tunnel_protocol.raw_quic import RAW_QUIC

pytestmark = needs_compiled

NAMES = st.text("abcxyz0189-_!#$%&'*+.^`|~", min_size=1, max_size=30).map(str.encode)
VALUES = st.text([chr(c) for c in range(0x20, 0x7F)] + ["\t"], max_size=60).map(str.encode)
USUAL = st.lists(st.tuples(NAMES, VALUES), max_size=12)
ODD = st.one_of(
    st.binary(max_size=20),
    st.binary(max_size=20).map(bytearray),
    st.text("aé", max_size=3),
    st.none(),
    st.integers(0, 9),
)
ODD_ENTRY = st.one_of(
    st.tuples(NAMES, st.binary(max_size=20)),
    st.tuples(ODD, ODD),
    st.lists(NAMES, min_size=2, max_size=2),
    st.lists(NAMES, max_size=3).map(tuple),
    ODD,
)
BODIES = st.binary(max_size=70).map(capnp_layouts.encode_body)
HEADERS = st.builds(capnp_layouts.encode_map, st.sampled_from([0, 0, 0, 2]), USUAL)
MESSAGES = BODIES | HEADERS
WORDS = st.integers(0, (1 << 64) - 1) | st.integers(0, 40).flatmap(
    lambda count: st.sampled_from([count, count << 35 | 2 << 32 | 1, count << 36 | 7 << 32 | 1, 2 << 48 | count << 2])
)


@st.composite
def mutated(draw, messages):
    """Messages after each other, of which bytes, bits and words were changed, and a part cut out, repeated or moved."""
    stream = bytearray(b"".join(draw(st.lists(messages, min_size=1, max_size=4))))
    for at, mask in draw(st.lists(st.tuples(st.integers(0, 600), st.integers(1, 255)), max_size=2)):
        stream[at % len(stream)] ^= mask
    for at, word in draw(st.lists(st.tuples(st.integers(0, 14), WORDS), max_size=2)):
        if at * 8 + 8 <= len(stream):
            stream[at * 8 : at * 8 + 8] = word.to_bytes(8, "little")
    first, last = sorted(draw(st.tuples(st.integers(0, len(stream)), st.integers(0, len(stream)))))
    part = stream[first:last]
    change = draw(st.sampled_from(["nothing", "cut out", "repeat", "cut short", "extend", "splice"]))
    if change == "cut out":
        del stream[first:last]
    elif change == "repeat":
        stream[first:first] = part
    elif change == "cut short":
        del stream[first:]
    elif change == "extend":
        stream += draw(st.binary(max_size=24))
    elif change == "splice":
        stream[first:last] = draw(messages)
    return bytes(stream)


def same(name, *arguments):
    """Both forms have one outcome, which is returned."""
    expected = outcome(getattr(capnp_layouts, name), *arguments)
    assert outcome(getattr(COMPILED, name), *arguments) == expected
    return expected


@settings(max_examples=500)
@given(discriminant=st.integers(0, 2), entries=USUAL)
@example(discriminant=0, entries=[(b"n", b"v")] * 4096)
@example(discriminant=0, entries=[(b"n", b"v")] * 4097)
def test_usual_headers_are_written_and_read_alike(discriminant, entries):
    told = same("encode_map", discriminant, entries)
    if told[0] == "returned":
        same("canonical_entries", told[2])


@settings(max_examples=500)
@given(entries=st.lists(st.tuples(NAMES, VALUES) | ODD_ENTRY, max_size=5) | ODD)
def test_any_headers_are_written_or_refused_alike(entries):
    same("encode_map", 0, entries)


@settings(max_examples=500)
@given(entries=st.lists(st.tuples(NAMES | st.binary(max_size=20), VALUES | st.binary(max_size=20)), max_size=5))
def test_headers_with_any_texts_are_read_or_refused_alike(entries):
    # Written with usual values, which are then exchanged: nobody would write the others.
    raw = bytearray(capnp_layouts.encode_map(0, [(name, b"v" * len(value)) for name, value in entries]))
    at = 48 + 16 * len(entries)
    for name, value in entries:
        at += len(name) // 8 * 8 + 8
        raw[at : at + len(value)] = value
        at += len(value) // 8 * 8 + 8
    same("canonical_entries", bytes(raw))


@settings(max_examples=1500)
@given(raw=mutated(HEADERS))
def test_changed_headers_are_read_or_refused_alike(raw):
    same("canonical_entries", raw)


@settings(max_examples=500)
@given(data=st.binary(max_size=200), offset=st.integers(-300, 300))
def test_arbitrary_bytes_are_read_or_refused_alike(data, offset):
    words = len(data) // 8
    fixed = data[:4] + words.to_bytes(4, "little") + capnp_layouts.encode_map(0, [])[8:32] + data[8:]
    for raw in (data, fixed, bytes(4) + fixed[4:]):
        same("canonical_entries", raw)
        same("canonical_body_size", raw, offset)
        same("encode_body", raw)
        assert cut(COMPILED, raw, offset) == cut(capnp_layouts, raw, offset)


@settings(max_examples=1000)
@given(stream=mutated(MESSAGES), offset=st.integers(-50, 400))
def test_changed_bodies_are_measured_alike(stream, offset):
    same("canonical_body_size", stream, offset)
    same("canonical_body_size", stream, 0)


class FaultError(Exception):
    """What a callback raises."""


def fail(_receiver):
    raise FaultError


def stop(receiver):
    receiver.on_body = None


def turn_around(receiver):
    receiver.on_body = lambda content: receiver.told.append(content[::-1])


TURNS = st.tuples(st.integers(1, 6), st.sampled_from([fail, stop, turn_around]))


def cut(form, data, offset, turn=(-1, None)):
    """What a receiver is told by one form, and how the call ends."""
    receiver = BodyReceiver(*turn)
    return outcome(form.cut_bodies, receiver, data, offset), receiver.told


@settings(max_examples=1000)
@given(stream=mutated(BODIES) | mutated(MESSAGES), offset=st.integers(-50, 200), turn=TURNS)
def test_bodies_are_cut_alike(stream, offset, turn):
    assert cut(COMPILED, stream, 0, turn) == cut(capnp_layouts, stream, 0, turn)
    assert cut(COMPILED, stream, offset) == cut(capnp_layouts, stream, offset)


class Sink:
    """Tells what it is told; at some body it closes the exchange, fails or has others told."""

    def __init__(self, turn, act):
        self.told = []
        self.turn, self.act = turn, act
        self.bodies = 0
        self.exchange = RAW_QUIC.router_exchange(self)

    def on_head(self, head):
        self.told.append(head)

    def on_body(self, content):
        self.told.append(content)
        self.bodies += 1
        if self.bodies == self.turn:
            self.act(self)

    def on_end(self):
        self.told.append("end")


def close(sink):
    sink.exchange.close()


def want_no_short_cut(sink):
    sink.exchange.on_body = None


SINK_TURNS = st.tuples(st.integers(1, 6), st.sampled_from([fail, close, want_no_short_cut]))
HEAD = capnp_layouts.encode_map(0, [(b"x-status", b"200")])


@settings(max_examples=500)
@given(
    stream=st.lists(BODIES, min_size=1, max_size=12).map(b"".join) | mutated(BODIES) | mutated(MESSAGES),
    cuts=st.lists(st.integers(0, 800), max_size=8),
    turn=SINK_TURNS,
)
def test_exchanges_tell_alike_whatever_pieces_come(stream, cuts, turn):
    stream = HEAD + stream
    at = sorted({0, len(stream), *(each % (len(stream) + 1) for each in cuts)})
    pieces = [stream[first:last] for first, last in itertools.pairwise(at)]
    outcomes = []
    with pytest.MonkeyPatch.context() as patch:
        for form in (capnp_layouts, COMPILED):
            for name in ("cut_bodies", "canonical_body_size"):
                patch.setattr(message_reader, name, getattr(form, name))
            sink = Sink(*turn)
            ends = [outcome(sink.exchange.receive, piece, piece is pieces[-1]) for piece in pieces]
            outcomes.append((ends, sink.told, sink.exchange.held_bytes()))
    assert outcomes[0] == outcomes[1]
