"""Our codec and a general Cap'n Proto library agree: on bytes, on values, and on what is no message."""

import functools
import struct

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from support.capnp_oracle import Oracle
from tunnel_protocol import capnp
from tunnel_protocol.errors import ProtocolError

TOKENS = st.text("abcdefghijklmnopqrstuvwxyz0123456789-_!#$%&'*+.^`|~", min_size=1, max_size=40).map(str.encode)
VALUES = st.text([chr(c) for c in range(0x20, 0x7F)] + ["\t"], max_size=60).map(str.encode)
ENTRIES = st.lists(st.tuples(TOKENS, VALUES), max_size=12)
FIRST_SEGMENT_WORDS = st.sampled_from([1, 2, 3, 4, 5, 8, 13, 4096])
MEMBERS = {"headers": capnp.Headers, "trailers": capnp.Trailers, "body": capnp.Body}


@functools.cache
def oracle() -> Oracle:
    return Oracle()


@given(entries=ENTRIES)
def test_headers_and_trailers_are_written_byte_for_byte_alike(entries):
    assert capnp.encode_headers(entries) == oracle().write_map("headers", entries, 4096)
    assert capnp.encode_trailers(entries) == oracle().write_map("trailers", entries, 4096)


@given(content=st.binary(max_size=300))
@example(content=bytes(1024))
def test_bodies_are_written_byte_for_byte_alike(content):
    assert capnp.encode_body(content) == oracle().write_body(content, 4096)


@given(identity=st.text(max_size=40), token=st.none() | st.text(max_size=200))
def test_handshakes_are_written_byte_for_byte_alike(identity, token):
    identity, token = (None if text is None else text.encode(errors="replace").decode() for text in (identity, token))
    assert capnp.encode_handshake(identity, token) == oracle().write_handshake(identity, token, 4096)


@given(accepted=st.booleans(), reason=st.text("abc xyz", max_size=40))
def test_acks_are_written_byte_for_byte_alike(accepted, reason):
    assert capnp.encode_handshake_ack(accepted, reason) == oracle().write_ack(accepted, reason, 4096)


@given(entries=ENTRIES, words=FIRST_SEGMENT_WORDS, member=st.sampled_from(["headers", "trailers"]))
def test_headers_and_trailers_in_any_segments_are_read(entries, words, member):
    assert capnp.decode_message(oracle().write_map(member, entries, words)) == MEMBERS[member](entries)


@given(content=st.binary(max_size=300), words=FIRST_SEGMENT_WORDS)
def test_bodies_in_any_segments_are_read(content, words):
    assert capnp.decode_message(oracle().write_body(content, words)) == capnp.Body(content)


@given(
    identity=st.text("abcdéf", max_size=40), token=st.none() | st.text("abc", max_size=99), words=FIRST_SEGMENT_WORDS
)
def test_handshakes_in_any_segments_are_read(identity, token, words):
    raw = oracle().write_handshake(identity, token, words)
    assert capnp.decode_handshake(raw) == capnp.Handshake(identity, token)
    assert oracle().read_handshake(raw) == (identity, token)


@given(accepted=st.booleans(), reason=st.text("abc xyz", max_size=40), words=FIRST_SEGMENT_WORDS)
def test_acks_in_any_segments_are_read(accepted, reason, words):
    assert capnp.decode_handshake_ack(oracle().write_ack(accepted, reason, words)) == (accepted, reason)


SMALL_OFFSETS = st.integers(-8, 12).map(lambda offset: offset & 0x3FFFFFFF)
POINTERS = st.one_of(
    st.just(0),
    st.just(3),
    st.builds(lambda o, d, p: o << 2 | d << 32 | p << 48, SMALL_OFFSETS, st.integers(0, 2), st.integers(0, 3)),
    st.builds(lambda o, k, n: o << 2 | 1 | k << 32 | n << 35, SMALL_OFFSETS, st.integers(0, 7), st.integers(0, 17)),
    st.builds(lambda d, o, s: 2 | d << 2 | o << 3 | s << 32, st.integers(0, 1), st.integers(0, 9), st.integers(0, 3)),
    st.integers(0, (1 << 64) - 1),
)
# Where the general library is laxer than we are: empty objects may lie outside their segment there, the kind of a double-far
# landing pad is not looked at, and the highest bit of the number of elements in a tag is dropped. Nobody writes any of these.
STRICTER = (
    "pointer out of bounds",
    "pointer to an unknown segment",
    "double-far landing pad without a far pointer",
    "composite list elements overrun their words",
    "too many raw QUIC tunnel headers: 536870912",
)


@settings(max_examples=400)
@given(
    entries=ENTRIES.filter(lambda entries: len(entries) < 4),
    member=st.sampled_from(["headers", "trailers", "body"]),
    first=FIRST_SEGMENT_WORDS,
    changes=st.lists(st.tuples(st.integers(0, 40), POINTERS), min_size=1, max_size=3),
)
def test_both_agree_on_messages_with_changed_pointers(entries, member, first, changes):
    write = oracle().write_body if member == "body" else functools.partial(oracle().write_map, member)
    raw = bytearray(write(b"hello world" if member == "body" else entries, first))
    table = (4 + 4 * (struct.unpack_from("<I", raw)[0] + 1) + 7) & ~7
    for at, pointer in changes:
        struct.pack_into("<Q", raw, table + at % ((len(raw) - table) // 8) * 8, pointer)
    assert_both_agree(bytes(raw))


@pytest.mark.parametrize(
    "raw",
    [
        capnp.encode_body(b"ABCDEFGHI"),
        capnp.encode_body(b""),
        capnp.encode_headers([(b"ab", b"1"), (b"cd", b"12345678")]),
        capnp.encode_trailers([(b"ab", b"")]),
        capnp.encode_headers([]),
    ],
    ids=["body", "empty body", "headers", "trailers", "no headers"],
)
def test_both_agree_on_usual_messages_with_one_changed_bit(raw):
    for bit in range(len(raw) * 8):
        changed = bytearray(raw)
        changed[bit // 8] ^= 1 << (bit & 7)
        assert_both_agree(bytes(changed))


def assert_both_agree(raw):
    told = oracle().read(raw)
    ours, refused = _decoded(raw)
    if ours is None:
        assert told is None or refused in STRICTER or not _acceptable(*told)
    else:
        assert told is not None
        name, value = told
        expected = value if name == "body" else [(key.lower(), text) for key, text in value]
        assert ours == MEMBERS[name](expected)


def _decoded(raw):
    try:
        return capnp.decode_message(raw), None
    except ProtocolError as error:
        return None, error.reason


def _acceptable(member: str, value: object) -> bool:
    """Whether what the general library read also keeps the tunnel's own rules for names, values and their number."""
    if member == "body":
        return True
    try:
        capnp.decode_message(capnp.encode_headers(value))
    except ProtocolError:
        return False
    return True
