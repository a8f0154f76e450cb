"""The canonical layouts of headers, body and trailers messages, byte by byte: writing, reading, and cutting bodies off a stream.

The Python twin of `capnp_speedups.pyx`, which is used in its place where it has been compiled: `capnp.py` chooses. Both do the
same with the same arguments; for whatever is unusual the compiled functions call those of this module. See
docs/protocol.md, "Layout".
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
"""What fills a text up to a word, its NUL included, by its length modulo 8."""

_PAYLOAD = bytes.fromhex("0000000000000100")
# Root pointer, discriminant and payload pointer, as they stand behind the segment table.
_HEADERS_WORDS = ROOT + bytes(8) + _PAYLOAD
_BODY_WORDS = ROOT + b"\1" + bytes(7) + _PAYLOAD
# Segment count less one, words, the three words above, and the two halves of the list pointer.
_BODY_PREFIX = Struct("<II24sII")
_body_prefix = _BODY_PREFIX.unpack_from
_headers_prefix = Struct("<II24sIIII").unpack_from  # and of the tag
_ENTRIES_AT = 48  # byte position of the first entry's pointers
_DATA_PADDING = tuple(bytes(-n & 7) for n in range(8))

_NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+\Z").match
_IN_LOWER_CASE_NAMES = b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyz"
_IN_VALUES = bytes(range(0x20, 0x7F)) + b"\t"


class BodyReceiver(Protocol):
    """Whoever is told of bodies."""

    on_body: Callable[[bytes], None] | None
    """Called with the content of each body; None if bodies are not, or no longer, of interest."""


def encode_map(discriminant: int, entries: HeaderList, /) -> bytes:
    """A headers or trailers message. Raises `ProtocolError` for entries the wire cannot carry (count, size, values)."""
    count = len(entries)
    if count > MAX_ENTRIES:
        raise ProtocolError(f"too many raw QUIC tunnel headers: {count}")
    texts = [text for entry in entries for text in entry]
    if b"".join(texts[1::2]).translate(None, _IN_VALUES):
        check_values(entries)
    pointers: list[int] = []
    parts = [b""]
    # A pointer's offset counts from the word behind it: one less with each pointer, and more by each text's words, which are
    # one more than `size >> 3`.
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
    """Raises `ProtocolError` if a text, or where it would lie, does not fit the bits of a pointer."""
    offset = len(texts) - 1
    for text in texts:
        if len(text) > MAX_FIELD_BYTES:
            raise ProtocolError(f"raw QUIC tunnel header field too large: {len(text)} bytes")
        if offset > MAX_TEXT_OFFSET_WORDS:
            raise ProtocolError("raw QUIC tunnel header text offset too large")
        offset += len(text) >> 3


def canonical_entries(data: bytes, /) -> HeaderList | None:
    """Entries of the canonical headers message that fills `data`; None if its layout is unusual (the general reader decides).

    Raises `ProtocolError` for names and values that are none.
    """
    size = len(data)
    if size < _ENTRIES_AT:
        return None
    segments, words, middle, low, high, tag_low, tag_high = _headers_prefix(data, 0)
    count = tag_low >> 2
    position = _ENTRIES_AT + 16 * count  # of the next text: they follow each other without gaps
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
    """Names, in lower case, with their values. Raises `ProtocolError` like `checked_name` and `check_values`."""
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
    """Raises `ProtocolError` for the first value that holds anything but printable ASCII and tabs."""
    for name, value in entries:
        if value.translate(None, _IN_VALUES):
            raise ProtocolError(f"non-ASCII header value for '{_printable(name)}'")


def _printable(name: bytes) -> str:
    return name[:64].decode("ascii", "backslashreplace")


def encode_body(content: bytes, /) -> bytes:
    """A body message: 40 bytes of prefix, the content, zeros up to the next word. Raises `ProtocolError` above 512 MiB."""
    size = len(content)
    if size > MAX_BODY_BYTES:
        raise ProtocolError(f"raw QUIC tunnel body too large: {size} bytes")
    prefix = _BODY_PREFIX.pack(0, 4 + ((size + 7) >> 3), _BODY_WORDS, 1, size << 3 | 2)
    return b"".join((prefix, content, _DATA_PADDING[size & 7]))


def canonical_body_size(buffer: bytes, offset: int, /) -> int:
    """Content length if a canonical body message starts at `offset` (40 bytes must be there), else -1."""
    segments, words, middle, low, high = _body_prefix(buffer, offset)
    size: int = high >> 3
    if middle != _BODY_WORDS or segments or low != 1 or high & 7 != 2 or words != 4 + ((size + 7) >> 3):
        return -1
    return size


def cut_bodies(reader: BodyReceiver, data: bytes, offset: int, /) -> int:
    """Tell `reader` of the complete, canonical, non-empty bodies that follow each other from `offset` on.

    Returns the offset behind the last one: of another message, of an incomplete one, or of the first that `reader` does not
    want, for `on_body` is looked up anew each time. What it raises ends everything.
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
