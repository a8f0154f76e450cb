"""The five messages of a tunnel as bytes: headers, body and trailers of request streams, handshake and its ack.

Encoders write the canonical single-segment layouts, byte for byte what the reference writes. Decoders have a short path for
exactly these layouts and leave everything else to `capnp_reader`. All decoders raise only `ProtocolError`. See
docs/protocol.md, "Messages".
"""

import re
from struct import Struct, pack, unpack_from
from typing import NamedTuple

from tunnel_protocol.capnp_reader import Message, StructView
from tunnel_protocol.errors import ProtocolError
from tunnel_protocol.head import HeaderList

MAX_ENTRIES = 4096
MAX_NAME_BYTES = 65535
MAX_FIELD_BYTES = (1 << 29) - 2
MAX_TEXT_OFFSET_WORDS = (1 << 29) - 1
MAX_BODY_BYTES = (1 << 29) - 1
BODY_PREFIX_BYTES = 40
BODY_WORDS = bytes.fromhex("00000000010001000100000000000000 0000000000000100")
"""Root pointer, discriminant and payload pointer of a body message, as they stand behind its segment table."""
BODY_PREFIX = Struct("<II24sII")
"""The fixed prefix of a body message: segment count less one, words, `BODY_WORDS`, and the two halves of the list pointer."""

_ROOT = bytes.fromhex("0000000001000100")
_PAYLOAD = bytes.fromhex("0000000000000100")
_HEADERS_WORDS = _ROOT + bytes(8) + _PAYLOAD
_ENTRIES_AT = 48  # byte position of the first entry's pointers
_TEXT_PADDING = tuple(bytes(8 - (n & 7)) for n in range(8))
_DATA_PADDING = tuple(bytes(-n & 7) for n in range(8))
_headers_prefix = Struct("<II24sIIII").unpack_from

_NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+\Z").match
_IN_LOWER_CASE_NAMES = b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyz"
_IN_VALUES = bytes(range(0x20, 0x7F)) + b"\t"
_DISCRIMINANT_HEADERS, _DISCRIMINANT_BODY, _DISCRIMINANT_TRAILERS = 0, 1, 2


class Headers(NamedTuple):
    """A headers message."""

    entries: HeaderList


class Body(NamedTuple):
    """A body message."""

    content: bytes


class Trailers(NamedTuple):
    """A trailers message."""

    entries: HeaderList


class Handshake(NamedTuple):
    """What a worker says first on a reverse tunnel; `auth_token` None means that none was sent."""

    inference_server_id: str
    auth_token: str | None


class HandshakeAck(NamedTuple):
    """The router's answer; `reason` is empty when accepted."""

    accepted: bool
    reason: str


def encode_headers(entries: HeaderList) -> bytes:
    """A headers message. Raises `ProtocolError` for entries the wire cannot carry (count, size, non-ASCII values)."""
    return _encode_map(_DISCRIMINANT_HEADERS, entries)


def encode_trailers(entries: HeaderList) -> bytes:
    """A trailers message. Raises `ProtocolError` like `encode_headers`."""
    return _encode_map(_DISCRIMINANT_TRAILERS, entries)


def encode_body(content: bytes) -> bytes:
    """A body message: 40 bytes of prefix, the content, zeros up to the next word. Raises `ProtocolError` above 512 MiB."""
    size = len(content)
    if size > MAX_BODY_BYTES:
        raise ProtocolError(f"raw QUIC tunnel body too large: {size} bytes")
    prefix = BODY_PREFIX.pack(0, 4 + ((size + 7) >> 3), BODY_WORDS, 1, size << 3 | 2)
    return b"".join((prefix, content, _DATA_PADDING[size & 7]))


def _encode_map(discriminant: int, entries: HeaderList) -> bytes:
    count = len(entries)
    if count > MAX_ENTRIES:
        raise ProtocolError(f"too many raw QUIC tunnel headers: {count}")
    texts = [text for entry in entries for text in entry]
    if b"".join(texts[1::2]).translate(None, _IN_VALUES):
        _refuse_value(entries)
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
        parts.append(_TEXT_PADDING[size & 7])
    words = 6 + 2 * count + offset  # all texts together are `offset + 1` words
    if offset > MAX_FIELD_BYTES >> 3:
        _check_sizes(texts)
    parts[0] = pack(
        f"<Q8sQ8sQQ{2 * count}Q",
        words << 32,
        _ROOT,
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


def encode_handshake(inference_server_id: str, auth_token: str | None) -> bytes:
    """A handshake message, in one segment however long the token is."""
    identity = inference_server_id.encode()
    token = None if auth_token is None else auth_token.encode()
    id_words = (len(identity) >> 3) + 1
    token_pointer = (0, 0) if token is None else (id_words << 2 | 1, (len(token) + 1) << 3 | 2)
    texts = [identity, _TEXT_PADDING[len(identity) & 7]]
    if token is not None:
        texts += [token, _TEXT_PADDING[len(token) & 7]]
    words = 3 + sum(map(len, texts)) // 8
    head = pack("<IIIIIIII", 0, words, 0, 2 << 16, 1 << 2 | 1, (len(identity) + 1) << 3 | 2, *token_pointer)
    return b"".join((head, *texts))


def encode_handshake_ack(accepted: bool, reason: str = "") -> bytes:
    """A handshake ack message."""
    text = reason.encode()
    words = 3 + (len(text) >> 3) + 1
    head = pack("<II8sQII", 0, words, _ROOT, int(accepted), 1, (len(text) + 1) << 3 | 2)
    return b"".join((head, text, _TEXT_PADDING[len(text) & 7]))


def decode_message(data: bytes) -> Headers | Body | Trailers:
    """The message of a request stream that fills `data`. Raises `ProtocolError`."""
    if len(data) >= BODY_PREFIX_BYTES:
        size = canonical_body_size(data, 0)
        if size >= 0 and len(data) - BODY_PREFIX_BYTES >= (size + 7) & ~7:
            return Body(data[BODY_PREFIX_BYTES : BODY_PREFIX_BYTES + size])
        if data[8:32] == _HEADERS_WORDS:
            entries = _canonical_entries(data)
            if entries is not None:
                return Headers(entries)
    return _decode_any(data)


def canonical_body_size(buffer: bytes, offset: int) -> int:
    """Content length if a canonical body message starts at `offset` (40 bytes must be there), else -1."""
    segments, words, middle, low, high = BODY_PREFIX.unpack_from(buffer, offset)
    size: int = high >> 3
    if middle != BODY_WORDS or segments or low != 1 or high & 7 != 2 or words != 4 + ((size + 7) >> 3):
        return -1
    return size


def decode_handshake(data: bytes) -> Handshake:
    """The handshake that fills `data`; the id is examined before the token. Raises `ProtocolError`."""
    message = Message(data)
    root = message.root()
    identity = _utf8(message.text(root, 0) or b"", "inference_server_id")
    token = message.text(root, 1)
    return Handshake(identity, None if token is None else _utf8(token, "auth_token"))


def decode_handshake_ack(data: bytes) -> HandshakeAck:
    """The ack that fills `data`. Raises `ProtocolError`."""
    message = Message(data)
    root = message.root()
    return HandshakeAck(bool(message.uint16(root) & 1), _utf8(message.text(root, 0) or b"", "reason"))


def _canonical_entries(data: bytes) -> HeaderList | None:
    """Entries of a canonical headers message; None if its layout is unusual (the general reader decides then)."""
    size = len(data)
    if size < _ENTRIES_AT:
        return None
    segments, words, _, low, high, tag_low, tag_high = _headers_prefix(data, 0)
    count = tag_low >> 2
    position = _ENTRIES_AT + 16 * count  # of the next text: they follow each other without gaps
    if segments or size != 8 + 8 * words or position > size or count > MAX_ENTRIES:
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
    names, values = texts[::2], texts[1::2]
    joined = b"".join(names)
    if joined.translate(None, _IN_LOWER_CASE_NAMES) or len(joined) > MAX_NAME_BYTES or b"" in names:
        names = [checked_name(name) for name in names]
    entries = list(zip(names, values, strict=True))
    if b"".join(values).translate(None, _IN_VALUES):
        _refuse_value(entries)
    return entries


def _decode_any(data: bytes) -> Headers | Body | Trailers:
    message = Message(data)
    root = message.root()
    kind = message.uint16(root)
    payload = message.struct(root, 0) if kind <= _DISCRIMINANT_TRAILERS else None
    if kind == _DISCRIMINANT_BODY:
        return Body(message.data(payload, 0))
    if kind == _DISCRIMINANT_HEADERS:
        return Headers(_entries(message, payload))
    if kind == _DISCRIMINANT_TRAILERS:
        return Trailers(_entries(message, payload))
    raise ProtocolError(f"unknown QuicMessage discriminant {kind}")


def _entries(message: Message, payload: StructView | None) -> HeaderList:
    entries: HeaderList = []
    for entry in message.structs(payload, 0, MAX_ENTRIES, "too many raw QUIC tunnel headers"):
        name = checked_name(message.text(entry, 0) or b"")
        entries.append((name, message.text(entry, 1) or b""))
    _refuse_value(entries)
    return entries


def checked_name(name: bytes) -> bytes:
    """`name` in lower case. Raises `ProtocolError` unless it is an HTTP token of at most 65,535 characters."""
    if len(name) > MAX_NAME_BYTES or not _NAME(name):
        raise ProtocolError(f"bad header name '{_printable(name)}'")
    return name.lower()


def _refuse_value(entries: HeaderList) -> None:
    """Raises `ProtocolError` for the first value that holds anything but printable ASCII and tabs."""
    for name, value in entries:
        if value.translate(None, _IN_VALUES):
            raise ProtocolError(f"non-ASCII header value for '{_printable(name)}'")


def _printable(name: bytes) -> str:
    return name[:64].decode("ascii", "backslashreplace")


def _utf8(text: bytes, field: str) -> str:
    try:
        return text.decode()
    except UnicodeDecodeError:
        raise ProtocolError(f"{field} is not UTF-8") from None
