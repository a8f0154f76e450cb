"""Cutting a stream into messages: any pieces, bounded memory, boundaries of small bodies kept."""

import struct

import pytest

from tunnel_protocol import capnp
from tunnel_protocol.errors import ProtocolError
from tunnel_protocol.message_reader import MAX_MESSAGE_BYTES, WHOLE_BODY_BYTES, MessageReader

HEADERS = capnp.encode_headers([(b"x-status", b"200")])


class Reader(MessageReader):
    def __init__(self, *, shortcut: bool = False, **options: int) -> None:
        super().__init__(**options)
        self.messages: list[object] = []
        if shortcut:
            self.on_body = lambda content: self.messages.append(capnp.Body(content))

    def on_message(self, message: object) -> None:
        self.messages.append(message)

    def contents(self) -> list[bytes]:
        return [message.content for message in self.messages if isinstance(message, capnp.Body)]


def in_two_segments(content: bytes) -> bytes:
    """A body whose content lies in a second segment behind a landing pad."""
    padded = content + bytes(-len(content) % 8)
    first = struct.pack("<QQQQ", 1 << 32 | 1 << 48, 1, 1 << 48, 1 << 32 | 2)
    second = struct.pack("<Q", len(content) << 35 | 2 << 32 | 1) + padded
    return struct.pack("<IIII", 1, 4, len(second) // 8, 0) + first + second


@pytest.mark.parametrize("shortcut", [False, True])
def test_many_messages_in_one_piece_are_reported_in_order(shortcut: bool) -> None:
    reader = Reader(shortcut=shortcut)
    contents = [b"", b"a", b"12345678", b"x" * 1000]
    reader.feed(HEADERS + b"".join(map(capnp.encode_body, contents)) + in_two_segments(b"abc") + HEADERS[:3])
    assert isinstance(reader.messages[0], capnp.Headers)
    assert reader.contents() == [*contents, b"abc"]
    assert reader.held_bytes() == 3


@pytest.mark.parametrize("shortcut", [False, True])
@pytest.mark.parametrize("step", [1, 5, 8, 40, 41, 1200])
def test_one_message_in_many_pieces_is_reported_whole(step: int, shortcut: bool) -> None:
    reader = Reader(shortcut=shortcut)
    contents = [b"x" * 3000, b"", b"y" * 7, b"z" * WHOLE_BODY_BYTES]
    stream = b"".join(map(capnp.encode_body, contents)) + in_two_segments(b"w" * 500)
    for at in range(0, len(stream), step):
        reader.feed(stream[at : at + step])
    reader.finish()
    assert reader.contents() == [*contents, b"w" * 500]


@pytest.mark.parametrize("size", [WHOLE_BODY_BYTES + 1, WHOLE_BODY_BYTES + 8, 3 * MAX_MESSAGE_BYTES + 5])
@pytest.mark.parametrize("step", [1200, 50_000])
def test_large_body_is_handed_on_as_it_arrives(size: int, step: int) -> None:
    reader = Reader()
    content = bytes(range(256)) * (size // 256) + b"e" * (size % 256)
    stream = HEADERS + capnp.encode_body(content) + capnp.encode_body(b"next")
    for at in range(0, len(stream), step):
        reader.feed(stream[at : at + step])
        assert reader.held_bytes() < step
    reader.finish()
    pieces = reader.contents()
    assert b"".join(pieces[:-1]) == content
    assert pieces[-1] == b"next"
    assert all(pieces)


def test_large_body_whose_padding_arrives_alone_is_complete() -> None:
    reader = Reader()
    stream = capnp.encode_body(b"x" * (WHOLE_BODY_BYTES + 3))
    reader.feed(stream[:40])
    reader.feed(stream[40:-5])
    with pytest.raises(ProtocolError, match="end of stream inside a message"):
        reader.finish()
    reader.feed(stream[-5:-2])
    reader.feed(stream[-2:])
    reader.finish()
    assert b"".join(reader.contents()) == b"x" * (WHOLE_BODY_BYTES + 3)


@pytest.mark.parametrize("cut", [1, 7, 8, 20, 40, 41, 44])
def test_stream_that_ends_inside_a_message_is_no_clean_end(cut: int) -> None:
    reader = Reader()
    reader.finish()
    reader.feed(HEADERS + capnp.encode_body(b"abcde")[:cut])
    with pytest.raises(ProtocolError, match="end of stream inside a message"):
        reader.finish()


def test_large_body_cut_short_is_no_clean_end() -> None:
    reader = Reader()
    reader.feed(capnp.encode_body(b"x" * 100_000)[:70_000])
    with pytest.raises(ProtocolError, match="end of stream inside a message"):
        reader.finish()


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        (struct.pack("<II", 511, 1), "Too many segments: 512"),
        (struct.pack("<II", 0xFFFFFFFF, 1), "Too few segments: 0"),
        (struct.pack("<II", 0, 134_217_729) + bytes(32), "Message has 134217729 words, which is too large"),
        (struct.pack("<IIII", 1, 134_217_728, 1, 0), "Message has 134217729 words, which is too large"),
        (struct.pack("<II", 0, 1 << 17) + bytes(32), "message of 1048584 bytes exceeds the limit of 1048576"),
    ],
)
def test_announcement_that_cannot_be_honest_is_refused_at_once(table: bytes, reason: str) -> None:
    reader = Reader()
    with pytest.raises(ProtocolError, match=f"^{reason}$"):
        reader.feed(table)


def test_announced_bytes_cost_nothing_until_they_come() -> None:
    reader = Reader()
    reader.feed(struct.pack("<II", 510, 0))
    assert reader.held_bytes() == 8
    reader.feed(struct.pack("<II", 0, (1 << 17) - 1))
    assert reader.held_bytes() == 16


def test_message_limit_holds_for_everything_that_is_kept_whole() -> None:
    entries = [(b"x-%d" % n, b"v" * 100) for n in range(100)]
    reader = Reader(max_message_bytes=4096)
    with pytest.raises(ProtocolError, match="exceeds the limit of 4096"):
        reader.feed(capnp.encode_headers(entries))
    reader = Reader(max_message_bytes=4096)
    with pytest.raises(ProtocolError, match="exceeds the limit of 4096"):
        reader.feed(in_two_segments(b"x" * 5000)[:1200])
    reader = Reader(max_message_bytes=4096)
    stream = capnp.encode_body(b"x" * 5000)
    for at in range(0, len(stream), 1200):
        reader.feed(stream[at : at + 1200])
        assert not reader.held_bytes()
    assert b"".join(reader.contents()) == b"x" * 5000


def test_limit_is_not_judged_before_the_kind_of_message_is_known() -> None:
    reader = Reader(max_message_bytes=4096)
    stream = capnp.encode_body(b"x" * 5000)
    reader.feed(stream[:39])
    assert reader.held_bytes() == 39
    reader.feed(stream[39:])
    assert b"".join(reader.contents()) == b"x" * 5000


@pytest.mark.parametrize("content", [b"ABCDEFGHI", b"12345678"])
def test_the_short_cut_reads_almost_usual_bodies_as_the_long_way_does(content: bytes) -> None:
    usual = capnp.encode_body(content)
    for bit in range(len(usual) * 8):
        changed = bytearray(usual)
        changed[bit // 8] ^= 1 << (bit & 7)
        stream = bytes(changed) + capnp.encode_body(b"next") * 3
        outcomes = []
        for shortcut in (False, True):
            reader = Reader(shortcut=shortcut)
            reason = ""
            try:
                reader.feed(stream)
                reader.finish()
            except ProtocolError as error:
                reason = error.reason
            outcomes.append(([m for m in reader.messages if m != capnp.Body(b"")], reason))
        assert outcomes[0] == outcomes[1], bit


def test_messages_before_a_fault_are_reported() -> None:
    reader = Reader()
    with pytest.raises(ProtocolError):
        reader.feed(HEADERS + capnp.encode_body(b"abc") + b"\xff" * 8 + capnp.encode_body(b"never"))
    assert reader.contents() == [b"abc"]


@pytest.mark.parametrize("shortcut", [False, True])
def test_nothing_is_reported_after_close(shortcut: bool) -> None:
    class Closing(Reader):
        def on_message(self, message: object) -> None:
            super().on_message(message)
            self.close()

    reader = Closing(shortcut=shortcut)
    reader.feed(HEADERS + capnp.encode_body(b"abc") + b"\xff" * 8)
    assert len(reader.messages) == 1
    reader.feed(capnp.encode_body(b"abc") + HEADERS[:9])
    assert len(reader.messages) == 1
    assert reader.held_bytes() == 0


def test_nothing_is_reported_after_close_inside_a_large_body() -> None:
    class Closing(Reader):
        def on_message(self, message: object) -> None:
            super().on_message(message)
            self.close()

    reader = Closing()
    stream = capnp.encode_body(b"x" * 100_000) + HEADERS
    reader.feed(stream[:1200])
    reader.feed(stream[1200:])
    assert len(reader.messages) == 1
