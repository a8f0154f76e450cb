"""Limits of the codec and what its errors say. Layouts are pinned by the vectors, other encodings by the oracle."""

import struct

import pytest

from tunnel_protocol import capnp
from tunnel_protocol.errors import ProtocolError
from tunnel_protocol.head import HeaderList

ENTRY = (b"a", b"1")


class Announced(bytes):
    """Content that claims a size nobody wants to allocate in a test."""

    size = 0

    def __len__(self) -> int:
        return self.size


def announced(size: int) -> bytes:
    content = Announced()
    content.size = size
    return content


def words(*values: int) -> bytes:
    """One segment of these words, with its table."""
    return struct.pack(f"<II{len(values)}Q", 0, len(values), *values)


def test_4096_entries_are_written_and_read() -> None:
    entries = [ENTRY] * 4096
    for encode, shape in ((capnp.encode_headers, capnp.Headers), (capnp.encode_trailers, capnp.Trailers)):
        assert capnp.decode_message(encode(entries)) == shape(entries)


@pytest.mark.parametrize("encode", [capnp.encode_headers, capnp.encode_trailers])
def test_4097_entries_are_not_written(encode: object) -> None:
    assert callable(encode)
    with pytest.raises(ProtocolError, match=r"^too many raw QUIC tunnel headers: 4097$"):
        encode([ENTRY] * 4097)


def test_4097_entries_in_the_usual_layout_are_not_read() -> None:
    count = 4097
    raw = words(1 << 32 | 1 << 48, 0, 1 << 48, count << 36 | 7 << 32 | 1, 2 << 48 | count << 2, *[0] * (2 * count))
    with pytest.raises(ProtocolError, match=r"^too many raw QUIC tunnel headers: 4097$"):
        capnp.decode_message(raw)


def test_4097_elements_of_another_kind_are_not_read() -> None:
    for size in (0, 6):
        raw = words(1 << 32 | 1 << 48, 0, 1 << 48, 4097 << 35 | size << 32 | 1, *[0] * 4097)
        with pytest.raises(ProtocolError, match=r"^too many raw QUIC tunnel headers: 4097$"):
            capnp.decode_message(raw)


def test_body_of_all_but_512_mib_can_be_expressed_and_one_byte_more_cannot() -> None:
    size = (1 << 29) - 1
    prefix = capnp.encode_body(announced(size))[:40]
    assert capnp.canonical_body_size(prefix, 0) == size
    with pytest.raises(ProtocolError, match=f"^raw QUIC tunnel body too large: {size + 1} bytes$"):
        capnp.encode_body(announced(size + 1))


def test_text_that_does_not_fit_its_pointer_is_not_written() -> None:
    size = (1 << 29) - 2
    name_pointer = struct.unpack_from("<II", capnp.encode_headers([(announced(size), b"")]), 48)
    assert name_pointer[1] >> 3 == size + 1
    with pytest.raises(ProtocolError, match=f"^raw QUIC tunnel header field too large: {size + 1} bytes$"):
        capnp.encode_headers([(announced(size + 1), b"")])


def test_text_that_would_lie_too_far_away_is_not_written() -> None:
    # Each of these texts takes 2**26 words; a pointer counts the words between itself and its text with 29 bits.
    far = announced((1 << 29) - 2)
    capnp.encode_headers([(far, b"")] * 7)
    with pytest.raises(ProtocolError, match=r"^raw QUIC tunnel header text offset too large$"):
        capnp.encode_headers([(far, b"")] * 9)


@pytest.mark.parametrize("value", [b"\x80", b"caf\xe9", "é".encode(), b"a\r\nb", b"\x00", b"\x7f"])
def test_value_the_wire_cannot_carry_is_refused_in_both_directions(value: bytes) -> None:
    for encode in (capnp.encode_headers, capnp.encode_trailers):
        with pytest.raises(ProtocolError, match=r"^non-ASCII header value for 'x-v'$"):
            encode([ENTRY, (b"x-v", value), ENTRY])
        raw = encode([ENTRY, (b"x-v", b"#" * len(value)), ENTRY]).replace(b"#" * len(value), value)
        with pytest.raises(ProtocolError, match=r"^non-ASCII header value for 'x-v'$"):
            capnp.decode_message(raw)


def test_tabs_and_spaces_of_a_value_are_kept() -> None:
    entries = [(b"x-v", b" a\tb "), (b"x-e", b"")]
    assert capnp.decode_message(capnp.encode_headers(entries)) == capnp.Headers(entries)


@pytest.mark.parametrize("encode", [capnp.encode_headers, capnp.encode_trailers])
def test_names_are_lower_cased_when_read(encode: object) -> None:
    assert callable(encode)
    assert capnp.decode_message(encode([(b"X-Trace", b"A"), ENTRY])).entries == [(b"x-trace", b"A"), ENTRY]


@pytest.mark.parametrize("name", [b"", b":path", b"a b", b"a\x00", b"\xc3\xa9", b"a\n", b"x" * 65536])
@pytest.mark.parametrize("encode", [capnp.encode_headers, capnp.encode_trailers])
def test_bad_name_is_refused_when_read(encode: object, name: bytes) -> None:
    assert callable(encode)
    with pytest.raises(ProtocolError, match=r"^bad header name '"):
        capnp.decode_message(encode([ENTRY, (name, b"1")]))


def test_names_that_are_long_together_are_each_judged_alone() -> None:
    entries: HeaderList = [(b"x" * 65535, b"1"), (b"y" * 65535, b"2")]
    assert capnp.decode_message(capnp.encode_headers(entries)) == capnp.Headers(entries)


def test_an_error_never_repeats_more_than_the_start_of_a_name() -> None:
    with pytest.raises(ProtocolError) as caught:
        capnp.decode_message(capnp.encode_headers([(b" " * 5000, b"secret")]))
    assert len(caught.value.reason) < 100
    assert "secret" not in caught.value.reason


HEADERS = capnp.encode_headers([(b"abc", b"1"), (b"d", b"12345678")])


@pytest.mark.parametrize(
    ("at", "word"),
    [
        (24, 0),  # no payload
        (32, 1),  # an empty list of nothing
        (32, 1 | 1 << 32),  # a list of bits
        (32, 1 << 35 | 1),  # a list of something without size, which has no name
        (40, 2 << 48 | 3 << 2),  # more elements than words
        (48, 0),  # a null name
        (48, 1 << 35 | 2 << 32 | 3 << 2 | 1),  # a name of no bytes but its NUL
        (48, 0 << 35 | 2 << 32 | 3 << 2 | 1),  # a name without even a NUL
        (48, 3 << 35 | 2 << 32 | 3 << 2 | 1),  # a name whose last byte is no NUL
        (48, 999 << 35 | 2 << 32 | 3 << 2 | 1),  # a name beyond the end
        (48, 4 << 35 | 2 << 32 | 4 << 2 | 1),  # a name somewhere else
        (48, 4 << 35 | 3 << 32 | 3 << 2 | 1),  # a name of two-byte elements
    ],
)
def test_headers_that_are_almost_in_the_usual_layout_are_read_with_care(at: int, word: int) -> None:
    raw = HEADERS[:at] + word.to_bytes(8, "little") + HEADERS[at + 8 :]
    if word in (0, 1) and at < 48:
        assert capnp.decode_message(raw) == capnp.Headers([])
    else:
        with pytest.raises(ProtocolError):
            capnp.decode_message(raw)


ROOT, MAP = 1 << 32 | 1 << 48, 1 << 48
ONE = int.from_bytes(b"a", "little")


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        # The value has no bytes at all, but the word where it would end is a NUL.
        (
            words(ROOT, 0, MAP, 0x17 << 32 | 1, 2 << 48 | 4, 2 << 35 | 2 << 32 | 5, 2 << 32 | 5, ONE),
            "not NUL-terminated",
        ),
        # List and tag agree on their number of entries; the message is too short for their pointers.
        (words(ROOT, 0, MAP, 4096 << 36 | 7 << 32 | 1, 2 << 48 | 4096 << 2, 0, 0), "pointer out of bounds"),
        # The list begins where the segment ends: its tag is missing.
        (words(ROOT, 0, MAP, 7 << 32 | 1), "pointer out of bounds"),
        # One entry of three pointers in a list of two words.
        (words(ROOT, 0, MAP, 0x17 << 32 | 1, 3 << 48 | 4, 0, 0, 0), "overrun their words"),
        # The tag is a list pointer, the tag is a far pointer.
        (words(ROOT, 0, MAP, 0x17 << 32 | 1, 2 << 48 | 5, 0, 0), "tag is not a struct"),
        (words(ROOT, 0, MAP, 0x17 << 32 | 1, 2 << 48 | 6, 0, 0), "tag is not a struct"),
    ],
)
def test_headers_that_lie_about_their_layout_are_refused(message: bytes, reason: str) -> None:
    with pytest.raises(ProtocolError, match=reason):
        capnp.decode_message(message)


def test_double_far_landing_pad_that_is_double_itself_is_refused() -> None:
    with pytest.raises(ProtocolError, match="double-far landing pad without a far pointer"):
        capnp.decode_message(words(6 | 1 << 3, 6 | 1 << 3, ROOT, 1, 0))


@pytest.mark.parametrize("size", range(0, len(HEADERS), 4))
def test_message_cut_short_is_refused(size: int) -> None:
    with pytest.raises(ProtocolError):
        capnp.decode_message(HEADERS[:size])
    with pytest.raises(ProtocolError):
        capnp.decode_message(capnp.encode_body(b"x" * 300)[:size])


def test_texts_that_overlap_are_read_but_not_multiplied_without_bound() -> None:
    def overlapping(size: int) -> bytes:
        count = 4096
        text_words = size // 8
        pointers = [(2 * count - 1 - at) << 2 | 1 | 2 << 32 | (size << 35) for at in range(2 * count)]
        text = (b"x" * (size - 1)) + b"\0"
        head = [1 << 32 | 1 << 48, 0, 1 << 48, count << 36 | 7 << 32 | 1, 2 << 48 | count << 2, *pointers]
        return struct.pack(f"<II{len(head)}Q", 0, len(head) + text_words, *head) + text

    assert len(capnp.decode_message(overlapping(8)).entries) == 4096  # type: ignore[union-attr]
    with pytest.raises(ProtocolError, match="reaches more words than allowed"):
        capnp.decode_message(overlapping(65528))


def test_void_elements_are_charged_although_they_take_no_bytes() -> None:
    raw = words(2 << 48, (1 << 29) - 1 << 35 | 1, 0)
    with pytest.raises(ProtocolError, match="reaches more words than allowed"):
        capnp.decode_handshake(raw)


@pytest.mark.parametrize(
    ("first", "reason"),
    [
        (2 | 0 << 3 | 5 << 32, "pointer to an unknown segment"),
        (2 | 9 << 3, "pointer out of bounds"),
        (6 | 2 << 3, "pointer out of bounds"),  # a double landing pad of which only half is there
        (6 | 1 << 3, "double-far landing pad without a far pointer"),
        (2 | 0 << 3, "far pointer that leads to a far pointer"),
        (3, "expected a struct pointer"),
        ((1 << 30) - 9 << 2 | 1 << 32, "pointer out of bounds"),
    ],
)
def test_root_that_leads_nowhere_is_refused(first: int, reason: str) -> None:
    with pytest.raises(ProtocolError, match=reason):
        capnp.decode_message(words(first, 0, 0))


def test_far_pointer_to_an_empty_landing_pad_is_an_empty_struct_and_no_list() -> None:
    assert capnp.decode_message(words(2 | 1 << 3, 0)) == capnp.Headers([])
    with pytest.raises(ProtocolError, match="expected a list pointer"):
        capnp.decode_message(words(1 << 32 | 1 << 48, 1, 1 << 48, 2 | 4 << 3, 0))


def test_handshake_reports_the_id_before_the_token() -> None:
    raw = bytearray(capnp.encode_handshake("aaaa", "bbbb"))
    raw[raw.index(b"aaaa")] = raw[raw.index(b"bbbb")] = 0xFF
    with pytest.raises(ProtocolError, match=r"^inference_server_id is not UTF-8$"):
        capnp.decode_handshake(bytes(raw))
    raw = bytearray(capnp.encode_handshake("aaaa", "bbbb"))
    raw[raw.index(b"bbbb")] = 0xFF
    with pytest.raises(ProtocolError, match=r"^auth_token is not UTF-8$"):
        capnp.decode_handshake(bytes(raw))


def test_ack_whose_reason_is_not_text_is_refused() -> None:
    raw = bytearray(capnp.encode_handshake_ack(False, "aaaa"))
    raw[raw.index(b"aaaa")] = 0xFF
    with pytest.raises(ProtocolError, match=r"^reason is not UTF-8$"):
        capnp.decode_handshake_ack(bytes(raw))


def test_absent_token_is_not_an_empty_one() -> None:
    assert capnp.decode_handshake(capnp.encode_handshake("i", None)) == capnp.Handshake("i", None)
    assert capnp.decode_handshake(capnp.encode_handshake("i", "")) == capnp.Handshake("i", "")
    token = "t" * 20_000
    assert capnp.decode_handshake(capnp.encode_handshake("i", token)).auth_token == token
