"""The five messages of a tunnel as bytes: headers, body and trailers of request streams, handshake and its ack.

Encoders write the canonical single-segment layouts, byte for byte what the reference writes. Decoders have a short path for
exactly these layouts and leave everything else to `capnp_reader`. All decoders raise only `ProtocolError`. See
docs/protocol.md, "Messages".
"""

import re
import struct
from struct import Struct, pack
from typing import NamedTuple

from tunnel_protocol.capnp_reader import Message, StructView
from tunnel_protocol.errors import ProtocolError
from tunnel_protocol.head import HeaderList

MAX_ENTRIES = 4096
MAX_NAME_BYTES = 65535
MAX_FIELD_BYTES = (1 << 29) - 2
MAX_BODY_BYTES = (1 << 29) - 1
BODY_PREFIX_BYTES = 40

_TABLE_AND_ROOT = Struct("<II8sQ8sII").pack
_ROOT = bytes.fromhex("0000000001000100")
_PAYLOAD = bytes.fromhex("0000000000000100")
_BODY_WORDS_1_TO_2 = _ROOT + (1).to_bytes(8, "little") + _PAYLOAD
_HEADERS_WORDS = _ROOT + bytes(8) + _PAYLOAD
_TEXT_PADDING = tuple(bytes(8 - (n & 7)) for n in range(8))
_DATA_PADDING = tuple(bytes(-n & 7) for n in range(8))
_u32x2 = Struct("<II").unpack_from

_NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+\Z").match
_NOT_IN_VALUES = bytes(range(0x20, 0x7F)) + b"\t"
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
    prefix = _TABLE_AND_ROOT(0, 4 + ((size + 7) >> 3), _ROOT, _DISCRIMINANT_BODY, _PAYLOAD, 1, size << 3 | 2)
    return b"".join((prefix, content, _DATA_PADDING[size & 7]))


def _encode_map(discriminant: int, entries: HeaderList) -> bytes:
    count = len(entries)
    if count > MAX_ENTRIES:
        raise ProtocolError(f"too many raw QUIC tunnel headers: {count}")
    pointers: list[int] = []
    texts: list[bytes] = []
    # A pointer's offset counts from the word behind it; both move by one with each pointer and by a text's words with each text.
    offset = 2 * count - 1
    for name, value in entries:
        if value.translate(None, _NOT_IN_VALUES):
            raise ProtocolError(f"non-ASCII header value for '{_printable(name)}'")
        for text in (name, value):
            size = len(text)
            if size > MAX_FIELD_BYTES:
                raise ProtocolError(f"raw QUIC tunnel header field too large: {size} bytes")
            pointers.append(offset << 2 | 1)
            pointers.append((size + 1) << 3 | 2)
            offset += size >> 3
            texts.append(text)
            texts.append(_TEXT_PADDING[size & 7])
    words = 6 + 2 * count + offset  # `offset` is now one less than the words of all texts
    head = pack(
        f"<II8sQ8sIIII{4 * count}I",
        0,
        words,
        _ROOT,
        discriminant,
        _PAYLOAD,
        1,
        2 * count << 3 | 7,
        count << 2,
        2 << 16,
        *pointers,
    )
    return b"".join((head, *texts))


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
    kind = data[16:32] if data[:4] == b"\0\0\0\0" and data[8:16] == _ROOT else b""
    if kind == _BODY_WORDS_1_TO_2[8:]:
        content = _canonical_body(data)
        if content is not None:
            return Body(content)
    elif kind == _HEADERS_WORDS[8:]:
        entries = _canonical_entries(data)
        if entries is not None:
            return Headers(entries)
    return _decode_any(data)


def canonical_body_size(buffer: bytes | bytearray, offset: int) -> int:
    """Content length if a canonical body message starts at `offset` (40 bytes must be there), else -1."""
    if buffer[offset + 8 : offset + 32] != _BODY_WORDS_1_TO_2:
        return -1
    segments, words = _u32x2(buffer, offset)
    low, high = _u32x2(buffer, offset + 32)
    size: int = high >> 3
    if segments or low != 1 or high & 7 != 2 or words != 4 + ((size + 7) >> 3):
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


def _canonical_body(data: bytes) -> bytes | None:
    if len(data) < BODY_PREFIX_BYTES:
        return None
    size = canonical_body_size(data, 0)
    if size < 0 or len(data) < BODY_PREFIX_BYTES + ((size + 7) & ~7):
        return None
    return data[BODY_PREFIX_BYTES : BODY_PREFIX_BYTES + size]


def _canonical_entries(data: bytes) -> HeaderList | None:
    """Entries of a canonical headers message, or None if anything is unusual (the general reader decides then)."""
    try:
        low, high, tag_low, tag_high = Struct("<IIII").unpack_from(data, 32)
        count = tag_low >> 2
        if low != 1 or tag_low & 3 or tag_high != 2 << 16 or high != (2 * count << 3 | 7) or count > MAX_ENTRIES:
            return None
        pointers = Struct(f"<{4 * count}I").unpack_from(data, 48)
    except struct.error:
        return None
    end = 8 + int.from_bytes(data[4:8], "little") * 8
    position = 48  # byte position of the next text: texts follow each other without gaps
    expected = 2 * count - 1
    position += 16 * count
    entries: HeaderList = []
    name = b""
    for index in range(0, 4 * count, 2):
        pointer, kind = pointers[index], pointers[index + 1]
        size = kind >> 3
        if pointer != (expected << 2 | 1) or kind & 7 != 2 or size == 0 or position + size > end:
            return None
        last = position + size - 1
        if data[last]:
            return None
        text = data[position:last]
        words = (size + 7) >> 3
        position += words << 3
        expected += words - 1
        if index & 2:
            entries.append((name, checked_value(name, text)))
        else:
            name = checked_name(text)
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
        entries.append((name, checked_value(name, message.text(entry, 1) or b"")))
    return entries


def checked_name(name: bytes) -> bytes:
    """`name` in lower case. Raises `ProtocolError` unless it is an HTTP token of at most 65,535 characters."""
    if len(name) > MAX_NAME_BYTES or not _NAME(name):
        raise ProtocolError(f"bad header name '{_printable(name)}'")
    return name.lower()


def checked_value(name: bytes, value: bytes) -> bytes:
    """`value` as it is. Raises `ProtocolError` unless it holds only printable ASCII and tabs."""
    if value.translate(None, _NOT_IN_VALUES):
        raise ProtocolError(f"non-ASCII header value for '{_printable(name)}'")
    return value


def _printable(name: bytes) -> str:
    return name[:64].decode("ascii", "backslashreplace")


def _utf8(text: bytes, field: str) -> str:
    try:
        return text.decode()
    except UnicodeDecodeError:
        raise ProtocolError(f"{field} is not UTF-8") from None
