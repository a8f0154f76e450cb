"""General reader of one Cap'n Proto message in the unpacked stream framing: segments, pointers, structs, lists, texts.

Accepts every valid encoding of the five messages of a tunnel, not only the layouts that this program and the reference
write (`capnp.py` has a fast path for those): several segments, far pointers, larger and smaller structs, backward offsets.
Source: the Cap'n Proto encoding specification; limits in docs/protocol.md, "Messages".

The words reached through pointers are counted against a limit per message, so that a small message whose pointers refer to
the same words many times cannot become a large one.
"""

from struct import Struct
from typing import Final, NamedTuple

from tunnel_protocol.errors import ProtocolError

WORD_BYTES: Final = 8
MAX_SEGMENTS: Final = 511
TRAVERSAL_LIMIT_WORDS: Final = 1 << 20
"""Words that pointers may reach per message (8 MiB); messages read by this module are at most 1 MiB."""

_u32 = Struct("<I").unpack_from
_u64 = Struct("<Q").unpack_from

_STRUCT, _LIST, _FAR = 0, 1, 2
_BYTE_LIST, _POINTER_LIST, _COMPOSITE_LIST, _BIT_LIST = 2, 6, 7, 1
_DATA_WORDS_OF_SIZE: Final = {0: 0, 2: 1, 3: 2, 4: 4, 5: 8}
"""Bytes of one element, by element size code of a non-composite list."""


def table_bytes(buffer: bytes | bytearray | memoryview, offset: int = 0) -> int:
    """Size in bytes of the segment table at `offset`; needs 4 bytes there. Raises `ProtocolError` for an invalid count."""
    count: int = _u32(buffer, offset)[0] + 1
    if count > 0xFFFFFFFF:
        raise ProtocolError("Too few segments: 0")
    if count > MAX_SEGMENTS:
        raise ProtocolError(f"Too many segments: {count}")
    return (4 + 4 * count + 7) & ~7


def body_words(buffer: bytes | bytearray | memoryview, offset: int = 0) -> int:
    """Sum of the segment lengths, in words, of the complete segment table at `offset`."""
    count = _u32(buffer, offset)[0] + 1
    if count == 1:  # a table of one entry is what everybody writes
        length: int = _u32(buffer, offset + 4)[0]
        return length
    return sum(Struct(f"<{count}I").unpack_from(buffer, offset + 4))


class StructView(NamedTuple):
    """Position of a struct's sections: `data` and `pointers` are word indexes in segment `segment`, sizes are in words."""

    segment: int
    data: int
    data_words: int
    pointers: int
    pointer_count: int


class ListView(NamedTuple):
    """Position of a list: element size code, length in elements (composite: in words, without tag), first word index."""

    segment: int
    start: int
    size: int
    length: int


class Message:
    """One complete message, read from its root. Every method raises `ProtocolError` on an invalid encoding."""

    def __init__(self, data: bytes | bytearray | memoryview) -> None:
        if len(data) < WORD_BYTES or len(data) < (table := table_bytes(data)):
            raise ProtocolError("end of stream in a segment table")
        lengths = Struct(f"<{_u32(data, 0)[0] + 1}I").unpack_from(data, 4)
        view = memoryview(data)
        if len(view) < table + sum(lengths) * WORD_BYTES:
            raise ProtocolError("end of stream in a segment")
        self._segments: list[memoryview] = []
        start = table
        for words in lengths:
            self._segments.append(view[start : start + words * WORD_BYTES])
            start += words * WORD_BYTES
        self._words = lengths
        self._budget = TRAVERSAL_LIMIT_WORDS

    def root(self) -> StructView | None:
        """The root struct, or None for a null pointer (all defaults)."""
        if self._words[0] == 0:
            raise ProtocolError("message has no root pointer")
        return self._struct_at(0, 0)

    def uint16(self, struct: StructView | None) -> int:
        """The low 16 bits of the first data word; 0 if the struct is null or has no data."""
        if struct is None or struct.data_words == 0:
            return 0
        return self._word(struct.segment, struct.data) & 0xFFFF

    def struct(self, parent: StructView | None, index: int) -> StructView | None:
        """The struct behind pointer `index` of `parent`; None if null or beyond the parent's pointers."""
        at = self._pointer_slot(parent, index)
        return None if at is None else self._struct_at(*at)

    def data(self, parent: StructView | None, index: int) -> bytes:
        """The byte list behind pointer `index`; null reads as empty."""
        found = self._list(parent, index)
        if found is None:
            return b""
        return self._byte_list(found)

    def text(self, parent: StructView | None, index: int) -> bytes | None:
        """The text (without its NUL) behind pointer `index`; None if the pointer is null."""
        found = self._list(parent, index)
        if found is None:
            return None
        raw = self._byte_list(found)
        if not raw or raw[-1] != 0:
            raise ProtocolError("text is not NUL-terminated")
        return raw[:-1]

    def structs(self, parent: StructView | None, index: int, limit: int, too_many: str) -> list[StructView | None]:
        """The elements of the struct list behind pointer `index`, at most `limit` (else `too_many` with the count)."""
        found = self._list(parent, index)
        if found is None:
            return []
        if found.size == _BIT_LIST:
            raise ProtocolError("a bit list cannot be read as a list of structs")
        if found.size != _COMPOSITE_LIST:
            if found.length > limit:
                raise ProtocolError(f"{too_many}: {found.length}")
            if found.size == _POINTER_LIST:
                return [StructView(found.segment, 0, 0, found.start + i, 1) for i in range(found.length)]
            return [None] * found.length
        tag = self._word(found.segment, found.start)
        if tag & 3 != _STRUCT:
            raise ProtocolError("composite list whose tag is not a struct")
        count, data_words, pointers = (tag >> 2) & 0x3FFFFFFF, (tag >> 32) & 0xFFFF, tag >> 48
        step = data_words + pointers
        if count * step > found.length:
            raise ProtocolError("composite list elements overrun their words")
        if count > limit:
            raise ProtocolError(f"{too_many}: {count}")
        first = found.start + 1
        return [
            StructView(found.segment, first + i * step, data_words, first + i * step + data_words, pointers)
            for i in range(count)
        ]

    # --- pointers --------------------------------------------------------------------------------------------------

    def _word(self, segment: int, index: int) -> int:
        value: int = _u64(self._segments[segment], index * WORD_BYTES)[0]
        return value

    def _pointer_slot(self, parent: StructView | None, index: int) -> tuple[int, int] | None:
        if parent is None or index >= parent.pointer_count:
            return None
        return parent.segment, parent.pointers + index

    def _resolve(self, segment: int, index: int) -> tuple[int, int, int] | None:
        """Follow the pointer word at `index`: (pointer word, segment and word index of its content), None if null."""
        word = self._word(segment, index)
        if word == 0:
            return None
        if word & 3 != _FAR:
            return word, segment, index + 1 + _signed_offset(word)
        pad_segment, pad = word >> 32, (word >> 3) & 0x1FFFFFFF
        double = bool(word & 4)
        self._require(pad_segment, pad, 2 if double else 1)
        landing = self._word(pad_segment, pad)
        if not double:
            if landing & 3 == _FAR:
                raise ProtocolError("far pointer that leads to a far pointer")
            return landing, pad_segment, pad + 1 + _signed_offset(landing)
        if landing & 7 != _FAR:
            raise ProtocolError("double-far landing pad without a far pointer")
        return self._word(pad_segment, pad + 1), landing >> 32, (landing >> 3) & 0x1FFFFFFF

    def _struct_at(self, segment: int, index: int) -> StructView | None:
        found = self._resolve(segment, index)
        if found is None:
            return None
        word, segment, start = found
        if word & 3 != _STRUCT:
            raise ProtocolError("expected a struct pointer")
        data_words, pointers = (word >> 32) & 0xFFFF, word >> 48
        self._charge(segment, start, data_words + pointers)
        return StructView(segment, start, data_words, start + data_words, pointers)

    def _list(self, parent: StructView | None, index: int) -> ListView | None:
        at = self._pointer_slot(parent, index)
        found = None if at is None else self._resolve(*at)
        if found is None:
            return None
        word, segment, start = found
        if word & 3 != _LIST:
            raise ProtocolError("expected a list pointer")
        size, count = (word >> 32) & 7, word >> 35
        if size == _COMPOSITE_LIST:
            words = count + 1
        elif size == _POINTER_LIST:
            words = count
        elif size == _BIT_LIST:
            words = (count + 63) // 64
        else:
            words = (count * _DATA_WORDS_OF_SIZE[size] + 7) // 8
        self._charge(segment, start, words, count if size == 0 else 0)
        return ListView(segment, start, size, count)

    def _byte_list(self, found: ListView) -> bytes:
        if found.size != _BYTE_LIST:
            raise ProtocolError("expected a list of bytes")
        start = found.start * WORD_BYTES
        return bytes(self._segments[found.segment][start : start + found.length])

    def _require(self, segment: int, start: int, words: int) -> None:
        if segment >= len(self._segments):
            raise ProtocolError("pointer to an unknown segment")
        if start < 0 or start + words > self._words[segment]:
            raise ProtocolError("pointer out of bounds")

    def _charge(self, segment: int, start: int, words: int, extra: int = 0) -> None:
        self._require(segment, start, words)
        self._budget -= words + extra
        if self._budget < 0:
            raise ProtocolError("message reaches more words than allowed")


def _signed_offset(word: int) -> int:
    offset = (word >> 2) & 0x3FFFFFFF
    return offset - 0x40000000 if offset & 0x20000000 else offset
