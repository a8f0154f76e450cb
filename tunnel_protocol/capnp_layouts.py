"""The canonical layouts of headers, body and trailers messages: encoding, decoding, and extracting bodies from a stream.

The Python version of `capnp_speedups.pyx`, which is used instead if it was compiled: `capnp.py` chooses. Both behave the
same; for rare cases the compiled functions call those of this module. See docs/protocol.md, "Layout".
"""

import re
from collections.abc import Callable
from struct import Struct, pack, unpack_from
from typing import Protocol

from tunnel_protocol.errors import ProtocolError
from tunnel_protocol.head import HeaderList

MAX_ENTRIES = 4096
MAX_NAME_BYTES = 65535
MAX_FIELD_BYTES = (1 << 29) - 2
MAX_TEXT_OFFSET_WORDS = (1 << 29) - 1
MAX_BODY_BYTES = (1 << 29) - 1
BODY_PREFIX_BYTES = 40
ROOT = bytes.fromhex("0000000001000100")
"""Root pointer of a struct with one data word and one pointer."""
TEXT_PADDING = tuple(bytes(8 - (n & 7)) for n in range(8))
"""The final NUL and padding of a text to a full word, by its length modulo 8."""

_PAYLOAD = bytes.fromhex("0000000000000100")
# Root pointer, discriminant and payload pointer: the words after the segment table.
_HEADERS_WORDS = ROOT + bytes(8) + _PAYLOAD
_BODY_WORDS = ROOT + b"\1" + bytes(7) + _PAYLOAD
# Segment count less one, words, the three words above, and the two halves of the list pointer.
_BODY_PREFIX = Struct("<II24sII")
_body_prefix = _BODY_PREFIX.unpack_from
_headers_prefix = Struct("<II24sIIII").unpack_from  # the same, and the two halves of the tag
_ENTRIES_AT = 48  # byte position of the first entry's pointers
_DATA_PADDING = tuple(bytes(-n & 7) for n in range(8))

_NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+\Z").match
_IN_LOWER_CASE_NAMES = b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyz"
_IN_VALUES = bytes(range(0x20, 0x7F)) + b"\t"


class BodyReceiver(Protocol):
    """Receives the bodies that `cut_bodies` finds."""

    on_body: Callable[[bytes], None] | None
    """Called with the content of each body; None if bodies are not wanted, or no longer."""


def encode_map(discriminant: int, entries: HeaderList, /) -> bytes:
    """Encode a headers or trailers message. Raises `ProtocolError` for entries that cannot be encoded (count, size, values)."""
    count = len(entries)
    if count > MAX_ENTRIES:
        raise ProtocolError(f"too many raw QUIC tunnel headers: {count}")
    texts = [text for entry in entries for text in entry]
    if b"".join(texts[1::2]).translate(None, _IN_VALUES):
        check_values(entries)
    pointers: list[int] = []
    parts = [b""]
    # A pointer's offset counts from the word after it: it decreases by one with each pointer and increases by the words of
    # each text, which are `(size >> 3) + 1`.
    offset = 2 * count - 1
    for text in texts:
        size = len(text)
        pointers.append((size + 1) << 35 | 2 << 32 | offset << 2 | 1)
        offset += size >> 3
        parts.append(text)
        parts.append(TEXT_PADDING[size & 7])
    words = 6 + 2 * count + offset  # all texts together are `offset + 1` words
    if offset > MAX_FIELD_BYTES >> 3:
        _check_sizes(texts)
    parts[0] = pack(
        f"<Q8sQ8sQQ{2 * count}Q",
        words << 32,
        ROOT,
        discriminant,
        _PAYLOAD,
        count << 36 | 7 << 32 | 1,
        2 << 48 | count << 2,
        *pointers,
    )
    return b"".join(parts)


def _check_sizes(texts: list[bytes]) -> None:
    """Raises `ProtocolError` if the size or the offset of a text does not fit into a pointer."""
    offset = len(texts) - 1
    for text in texts:
        if len(text) > MAX_FIELD_BYTES:
            raise ProtocolError(f"raw QUIC tunnel header field too large: {len(text)} bytes")
        if offset > MAX_TEXT_OFFSET_WORDS:
            raise ProtocolError("raw QUIC tunnel header text offset too large")
        offset += len(text) >> 3


def canonical_entries(data: bytes, /) -> HeaderList | None:
    """Entries of the canonical headers message that fills `data`; None for another layout (for the general reader).

    Raises `ProtocolError` for invalid names and values.
    """
    size = len(data)
    if size < _ENTRIES_AT:
        return None
    segments, words, middle, low, high, tag_low, tag_high = _headers_prefix(data, 0)
    count = tag_low >> 2
    position = _ENTRIES_AT + 16 * count  # position of the next text: texts follow each other without gaps
    if middle != _HEADERS_WORDS or segments or size != 8 + 8 * words or position > size or count > MAX_ENTRIES:
        return None
    if low != 1 or high != (count << 4 | 7) or tag_low & 3 or tag_high != 2 << 16:
        return None
    pointers = unpack_from(f"<{4 * count}I", data, _ENTRIES_AT)
    expected = 8 * count - 3  # the low half of a list pointer: offset << 2 | 1
    texts: list[bytes] = []
    try:
        for pointer, kind in zip(pointers[::2], pointers[1::2], strict=True):
            last = position + (kind >> 3) - 1
            if pointer != expected or kind & 7 != 2 or kind < 8 or data[last]:
                return None
            texts.append(data[position:last])
            words = (kind - 8) >> 6
            expected += words << 2
            position += (words << 3) + 8
    except IndexError:
        return None
    return _checked_entries(texts[::2], texts[1::2])


def _checked_entries(names: list[bytes], values: list[bytes]) -> HeaderList:
    """Entries with names in lower case. Raises `ProtocolError` like `checked_name` and `check_values`."""
    joined = b"".join(names)
    if joined.translate(None, _IN_LOWER_CASE_NAMES) or len(joined) > MAX_NAME_BYTES or b"" in names:
        names = [checked_name(name) for name in names]
    entries = list(zip(names, values, strict=True))
    if b"".join(values).translate(None, _IN_VALUES):
        check_values(entries)
    return entries


def checked_name(name: bytes) -> bytes:
    """`name` in lower case. Raises `ProtocolError` unless it is an HTTP token of at most 65,535 characters."""
    if len(name) > MAX_NAME_BYTES or not _NAME(name):
        raise ProtocolError(f"bad header name '{_printable(name)}'")
    return name.lower()


def check_values(entries: HeaderList) -> None:
    """Raises `ProtocolError` for the first value with a byte other than printable ASCII and tab."""
    for name, value in entries:
        if value.translate(None, _IN_VALUES):
            raise ProtocolError(f"non-ASCII header value for '{_printable(name)}'")


def _printable(name: bytes) -> str:
    return name[:64].decode("ascii", "backslashreplace")


def encode_body(content: bytes, /) -> bytes:
    """Encode a body message: prefix of 40 bytes, content, zero padding to a word. Raises `ProtocolError` above 512 MiB."""
    prefix, padding = around_body(len(content))
    return b"".join((prefix, content, padding))


def around_body(size: int) -> tuple[bytes, bytes]:
    """What stands before and behind the `size` bytes of content in a body message. Raises `ProtocolError` above 512 MiB."""
    if size > MAX_BODY_BYTES:
        raise ProtocolError(f"raw QUIC tunnel body too large: {size} bytes")
    prefix = _BODY_PREFIX.pack(0, 4 + ((size + 7) >> 3), _BODY_WORDS, 1, size << 3 | 2)
    return prefix, _DATA_PADDING[size & 7]


def canonical_body_size(buffer: bytes, offset: int, /) -> int:
    """Content length in bytes if a canonical body message starts at `offset`, else -1. Needs 40 bytes there."""
    segments, words, middle, low, high = _body_prefix(buffer, offset)
    size: int = high >> 3
    if middle != _BODY_WORDS or segments or low != 1 or high & 7 != 2 or words != 4 + ((size + 7) >> 3):
        return -1
    return size


def cut_bodies(reader: BodyReceiver, data: bytes, offset: int, /) -> int:
    """Call `reader.on_body` for the complete, canonical, non-empty body messages from `offset` on.

    Returns the offset after the last of them: of another message, of an incomplete one, or of the first for which `on_body` is
    None (it is read again for each body). An exception of `on_body` is passed on.
    """
    size = len(data)
    while size - offset > BODY_PREFIX_BYTES and (on_body := reader.on_body) is not None:
        length = canonical_body_size(data, offset)
        start = offset + BODY_PREFIX_BYTES
        end = start + ((length + 7) & ~7)
        if length <= 0 or end > size:
            break
        on_body(data[start : start + length])
        offset = end
    return offset
