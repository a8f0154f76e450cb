"""The canonical layouts, byte by byte, in both forms: limits, alphabets, odd arguments, and bodies cut off a stream."""

import gc
import sys
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest

from support.capnp_layouts import COMPILED, BodyReceiver, both_forms, needs_compiled, outcome
from tunnel_protocol import capnp, capnp_layouts
from tunnel_protocol.errors import ProtocolError

TOKEN_CHARACTERS = set(b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
VALUE_CHARACTERS = {*range(0x20, 0x7F), 0x09}
ENTRIES = [(b"content-type", b"text/event-stream"), (b"x-empty", b""), (b"x-status", b"200")]
HEADERS = capnp_layouts.encode_map(0, ENTRIES)


class OddBytes(bytes):
    """Says nothing true about its length."""

    def __len__(self) -> int:
        return 3


def test_the_codec_uses_the_compiled_form_if_there_is_one() -> None:
    form = COMPILED or capnp_layouts
    for name in ("canonical_body_size", "canonical_entries", "cut_bodies", "encode_body", "encode_map"):
        assert getattr(capnp, name) is getattr(form, name)


# --- headers and trailers -----------------------------------------------------------------------------------------


@both_forms
def test_layouts_are_those_of_the_protocol_page(form: Any) -> None:
    assert form.encode_map(0, [(b"a", b"1")]) == bytes.fromhex(
        "00000000 09000000 00000000 01000100 00000000 00000000 00000000 00000100 01000000 17000000"
        "04000000 00000200 05000000 12000000 05000000 12000000 61000000 00000000 31000000 00000000"
    )
    assert form.encode_map(2, []) == bytes.fromhex(
        "00000000 05000000 00000000 01000100 02000000 00000000 00000000 00000100 01000000 07000000 00000000 00000200"
    )
    assert form.encode_body(b"hello") == bytes.fromhex(
        "00000000 05000000 00000000 01000100 01000000 00000000 00000000 00000100 01000000 2a000000 68656c6c 6f000000"
    )


@both_forms
@pytest.mark.parametrize("length", range(1, 26))
def test_texts_of_every_length_are_written_and_read(form: Any, length: int) -> None:
    entries = [(b"n" * length, b"v" * other) for other in range(20)]
    raw = form.encode_map(0, entries)
    assert raw == capnp_layouts.encode_map(0, entries)
    assert form.canonical_entries(raw) == entries


@both_forms
@pytest.mark.parametrize("at", range(17))
def test_value_may_hold_printable_ascii_and_tabs_at_any_place(form: Any, at: int) -> None:
    for character in range(256):
        value = b"x" * at + bytes([character]) + b"\t" * (at % 3) + b"x" * (17 - at)
        raw = form.encode_map(0, [(b"n", b"?" * len(value))]).replace(b"?" * len(value), value)
        if character in VALUE_CHARACTERS:
            assert form.encode_map(0, [(b"n", value)]) == raw
            assert form.canonical_entries(raw) == [(b"n", value)]
            continue
        with pytest.raises(ProtocolError, match=r"^non-ASCII header value for 'n'$"):
            form.encode_map(0, [(b"n", value)])
        with pytest.raises(ProtocolError, match=r"^non-ASCII header value for 'n'$"):
            form.canonical_entries(raw)


@both_forms
@pytest.mark.parametrize("at", range(10))
def test_name_is_a_token_at_any_place(form: Any, at: int) -> None:
    for character in range(256):
        name = b"n" * at + bytes([character]) + b"n" * (9 - at)
        raw = form.encode_map(0, [(name, b"v")])
        if character in TOKEN_CHARACTERS:
            assert form.canonical_entries(raw) == [(name.lower(), b"v")]
        else:
            with pytest.raises(ProtocolError, match=r"^bad header name '"):
                form.canonical_entries(raw)


@both_forms
def test_an_empty_name_is_written_but_not_read(form: Any) -> None:
    raw = form.encode_map(0, [(b"", b"v")])
    with pytest.raises(ProtocolError, match=r"^bad header name ''$"):
        form.canonical_entries(raw)


@both_forms
def test_names_are_limited_one_by_one(form: Any) -> None:
    entries = [(b"x" * 65535, b"1"), (b"y" * 65535, b"2")]
    assert form.canonical_entries(form.encode_map(0, entries)) == entries
    with pytest.raises(ProtocolError, match=r"^bad header name 'xxx"):
        form.canonical_entries(form.encode_map(0, [(b"x" * 65536, b"1")]))


@both_forms
@pytest.mark.parametrize("size", [(1 << 23) - 16, (1 << 23) - 8, (1 << 23) + 1])
def test_values_of_many_megabytes_are_written_and_read(form: Any, size: int) -> None:
    entries = [(b"n", b"v" * size)]
    raw = form.encode_map(0, entries)
    assert raw == capnp_layouts.encode_map(0, entries)
    assert form.canonical_entries(raw) == entries


@both_forms
def test_number_of_entries_is_limited(form: Any) -> None:
    raw = form.encode_map(0, [(b"n", b"v")] * 4096)
    assert form.canonical_entries(raw) == [(b"n", b"v")] * 4096
    with pytest.raises(ProtocolError, match=r"^too many raw QUIC tunnel headers: 4097$"):
        form.encode_map(0, [(b"n", b"v")] * 4097)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(capnp_layouts, "MAX_ENTRIES", 4097)
        raw = capnp_layouts.encode_map(0, [(b"n", b"v")] * 4097)
    assert form.canonical_entries(raw) is None


@both_forms
def test_trailers_bodies_and_parts_are_no_headers(form: Any) -> None:
    others = [form.encode_map(2, ENTRIES), form.encode_body(b"x" * 99), *(HEADERS[:at] for at in range(len(HEADERS)))]
    assert {form.canonical_entries(raw) for raw in others} == {None}
    assert form.canonical_entries(HEADERS + bytes(8)) is None


@both_forms
def test_words_behind_the_texts_are_ignored(form: Any) -> None:
    longer = bytearray(HEADERS + b"\xff" * 8)
    longer[4] += 1
    assert form.canonical_entries(bytes(longer)) == ENTRIES


@both_forms
def test_a_pointer_that_lies_about_its_text_is_not_believed(form: Any) -> None:
    """Lengths that run into the next text or beyond the end, or that end before or behind the NUL; and other kinds of list."""
    usual = outcome(form.canonical_entries, HEADERS)
    for at in range(48, 48 + 16 * len(ENTRIES), 8):
        for length in (*range(64), 1 << 28, (1 << 29) - 1):
            for kind in range(8):
                raw = HEADERS[: at + 4] + (length << 3 | kind).to_bytes(4, "little") + HEADERS[at + 8 :]
                told = outcome(form.canonical_entries, raw)
                assert told == outcome(capnp_layouts.canonical_entries, raw)
                assert told != usual or raw == HEADERS


@both_forms
def test_every_bit_of_a_message_counts_as_it_does_as_written(form: Any) -> None:
    body = capnp_layouts.encode_body(b"12345")
    for raw in (HEADERS, body):
        for bit in range(len(raw) * 8):
            changed = bytearray(raw)
            changed[bit // 8] ^= 1 << (bit & 7)
            data = bytes(changed)
            assert outcome(form.canonical_entries, data) == outcome(capnp_layouts.canonical_entries, data), bit
            assert form.canonical_body_size(data, 0) == capnp_layouts.canonical_body_size(data, 0), bit
            assert form.cut_bodies(BodyReceiver(), data + body, 0) == capnp_layouts.cut_bodies(
                BodyReceiver(), data + body, 0
            )


@both_forms
@pytest.mark.parametrize("count", [1, 2, 4096])
def test_a_message_too_short_for_its_pointers_is_no_usual_one(form: Any, count: int) -> None:
    prefix = bytearray(capnp_layouts.encode_map(0, [(b"n", b"v")] * count)[:48])
    for words in range(5, 5 + 2 * min(count, 8)):
        prefix[4] = words
        assert form.canonical_entries(bytes(prefix) + bytes(8 * words - 40)) is None


@both_forms
def test_a_nul_behind_the_end_of_the_message_ends_no_text(form: Any) -> None:
    raw = bytearray(form.encode_map(0, [(b"n", b"1234567")]))
    raw[-1:] = b"8"
    raw[60] += 1 << 3
    assert form.canonical_entries(bytes(raw)) is None


ODD_ENTRIES: dict[str, Callable[[], object]] = {
    "a tuple of entries": lambda: tuple(ENTRIES),
    "an iterator of entries": lambda: iter(ENTRIES),
    "a mapping": lambda: {b"ab": b"cd"},
    "nothing": lambda: None,
    "entries that are lists": lambda: [list(entry) for entry in ENTRIES],
    "an entry that is nothing": lambda: [None],
    "an entry that is bytes": lambda: [b"ab"],
    "one text": lambda: [(b"n",)],
    "three texts": lambda: [(b"n", b"v", b"w")],
    "bytearrays": lambda: [(bytearray(name), bytearray(value)) for name, value in ENTRIES],
    "memoryviews": lambda: [(name, memoryview(value)) for name, value in ENTRIES],
    "odd bytes": lambda: [(OddBytes(b"abc"), OddBytes(b"def"))],
    "a name of characters": lambda: [("text", b"v")],
    "a value of characters": lambda: [(b"n", "text")],
    "no value": lambda: [(b"n", None)],
}


@both_forms
@pytest.mark.parametrize("kind", ODD_ENTRIES)
def test_entries_of_other_types_are_treated_as_they_are_as_written(form: Any, kind: str) -> None:
    make = ODD_ENTRIES[kind]
    assert outcome(form.encode_map, 0, make()) == outcome(capnp_layouts.encode_map, 0, make())


# --- bodies -------------------------------------------------------------------------------------------------------


@both_forms
@pytest.mark.parametrize("size", [*range(20), 4096, 1 << 20])
def test_bodies_of_every_size_are_written_and_measured(form: Any, size: int) -> None:
    content = (b"\xff\0abc" * (size // 5 + 1))[:size]
    raw = form.encode_body(content)
    assert raw == capnp_layouts.encode_body(content)
    assert len(raw) == 40 + (size + 7) // 8 * 8
    assert form.canonical_body_size(raw, 0) == form.canonical_body_size(raw[:40], 0) == size
    assert form.canonical_body_size(b"???" + raw, 3) == size


@both_forms
@pytest.mark.parametrize("view", [bytes, bytearray, memoryview, OddBytes])
def test_messages_in_other_types_are_treated_as_they_are_as_written(form: Any, view: Any) -> None:
    body = capnp_layouts.encode_body(b"hello")
    assert outcome(form.encode_body, view(b"hello")) == outcome(capnp_layouts.encode_body, view(b"hello"))
    assert outcome(form.canonical_entries, view(HEADERS)) == outcome(capnp_layouts.canonical_entries, view(HEADERS))
    for offset in (-1, -len(body), 0, 1, len(body) - 39, len(body), 1 << 40, (1 << 63) - 1):
        expected = outcome(capnp_layouts.canonical_body_size, view(body), offset)
        assert outcome(form.canonical_body_size, view(body), offset) == expected
        ours, theirs = BodyReceiver(), BodyReceiver()
        expected = outcome(capnp_layouts.cut_bodies, theirs, view(body + body), offset)
        assert outcome(form.cut_bodies, ours, view(body + body), offset) == expected
        assert [(type(content), content) for content in ours.told] == [
            (type(content), content) for content in theirs.told
        ]


@both_forms
def test_bodies_are_cut_until_something_else_comes(form: Any) -> None:
    bodies = [b"a", b"12345678", b"x" * 1000]
    stream = b"".join(map(form.encode_body, bodies))
    more = form.encode_body(b"more")
    for rest in (b"", form.encode_body(b"") + more, HEADERS + more, *(more[:at] for at in range(len(more)))):
        receiver = BodyReceiver()
        assert form.cut_bodies(receiver, stream + rest, 0) == len(stream)
        assert receiver.told == bodies
    receiver = BodyReceiver()
    assert form.cut_bodies(receiver, stream, 48) == len(stream)
    assert receiver.told == bodies[1:]


@both_forms
def test_who_wants_no_bodies_gets_none(form: Any) -> None:
    receiver = BodyReceiver()
    receiver.on_body = None
    assert form.cut_bodies(receiver, form.encode_body(b"abc"), 0) == 0
    assert form.cut_bodies(object(), b"x" * 40, 0) == 0
    with pytest.raises(AttributeError, match="on_body"):
        form.cut_bodies(object(), form.encode_body(b"abc"), 0)


@both_forms
def test_who_closes_is_told_of_nothing_more(form: Any) -> None:
    receiver = BodyReceiver(turn=2, act=lambda receiver: setattr(receiver, "on_body", None))
    assert form.cut_bodies(receiver, form.encode_body(b"abc") * 5, 0) == 2 * 48
    assert receiver.told == [b"abc"] * 2


@both_forms
def test_who_is_to_be_told_may_change_in_between(form: Any) -> None:
    other: list[bytes] = []
    receiver = BodyReceiver(turn=2, act=lambda receiver: setattr(receiver, "on_body", other.append))
    assert form.cut_bodies(receiver, form.encode_body(b"abc") * 5, 0) == 5 * 48
    assert (receiver.told, other) == ([b"abc"] * 2, [b"abc"] * 3)


@both_forms
def test_what_is_raised_ends_everything(form: Any) -> None:
    fault = KeyError("mine")

    def fail(_: BodyReceiver) -> None:
        raise fault

    receiver = BodyReceiver(turn=2, act=fail)
    with pytest.raises(KeyError) as caught:
        form.cut_bodies(receiver, form.encode_body(b"abc") * 5, 0)
    assert caught.value is fault
    assert receiver.told == [b"abc"] * 2


# --- memory -------------------------------------------------------------------------------------------------------

SINGLETONS = (None, True, False, b"", b"v", 0, 1, -1, ())


def one_of_everything(form: Any) -> None:
    """Ten calls: usual ones, and some that end otherwise."""
    body = form.encode_body(b"x" * 99)
    raw = form.encode_map(0, ENTRIES)
    form.canonical_entries(raw)
    form.canonical_entries(raw[:-8])
    form.canonical_body_size(body, 0)
    form.cut_bodies(BodyReceiver(turn=2, act=lambda receiver: setattr(receiver, "on_body", None)), body * 3, 0)
    outcome(form.encode_map, 0, [*ENTRIES, (b"n", b"\xff")])
    outcome(form.encode_map, 0, [*ENTRIES, (b"n", "v")])
    outcome(form.canonical_entries, raw.replace(b"200", b"2\x000"))
    outcome(form.cut_bodies, BodyReceiver(turn=1, act=lambda _: int("no number")), body * 3, 0)


def many(form: Any, rounds: int) -> None:
    for _ in range(rounds):
        one_of_everything(form)
    gc.collect()


@needs_compiled
def test_a_hundred_thousand_calls_leave_nothing_behind() -> None:
    many(COMPILED, 100)
    tracemalloc.start()
    try:
        many(COMPILED, 100)
        blocks, (traced, _) = sys.getallocatedblocks(), tracemalloc.get_traced_memory()
        many(COMPILED, 10_000)
        assert abs(sys.getallocatedblocks() - blocks) < 200
        assert abs(tracemalloc.get_traced_memory()[0] - traced) < 20_000
    finally:
        tracemalloc.stop()


@needs_compiled
def test_references_to_what_lives_for_ever_are_given_back() -> None:
    def taken(form: Any) -> list[int]:
        before = [sys.getrefcount(one) for one in SINGLETONS]
        many(form, 1000)
        return [sys.getrefcount(one) - count for one, count in zip(SINGLETONS, before, strict=True)]

    many(COMPILED, 100)
    # Compared with the twin, because the exception itself may take one of None where it is compiled, too.
    for ours, theirs in zip(taken(COMPILED), taken(capnp_layouts), strict=True):
        assert abs(ours - theirs) < 100


@needs_compiled
def test_calls_hold_none_of_their_arguments() -> None:
    name, value, content, bad = (text.encode() for text in ("x-name", "some value", "some content", "caf\u00e9"))
    entries, odd, refused = [(name, value)], [(name, value, content)], [(name, bad)]
    raw, body = capnp_layouts.encode_map(0, entries), capnp_layouts.encode_body(content)
    capitals = raw.replace(b"x-name", b"X-Name")
    receiver = BodyReceiver()
    held = [name, value, content, bad, entries, odd, refused, entries[0], odd[0], refused[0], raw, body, capitals]
    held += [receiver, receiver.on_body]
    before = [sys.getrefcount(one) for one in held]
    for _ in range(100):
        for map_entries in (entries, odd, refused):
            outcome(COMPILED.encode_map, 0, map_entries)
        for data in (raw, capitals, body, content):
            outcome(COMPILED.canonical_entries, data)
            outcome(COMPILED.canonical_body_size, data, 0)
            outcome(COMPILED.cut_bodies, receiver, data, 0)
        COMPILED.encode_body(content)
        del map_entries, data
    assert [sys.getrefcount(one) for one in held] == before
