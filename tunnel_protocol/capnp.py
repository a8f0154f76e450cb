"""The five messages of a tunnel as bytes: headers, body and trailers of request streams, handshake and its ack.

Encoders write the canonical single-segment layouts, byte for byte as the reference does. Decoders have a fast path for
these layouts and use `capnp_reader` for all others. Decoders raise only `ProtocolError`. The layouts of headers, body and
trailers are in `capnp_layouts`; the compiled version is `capnp_speedups`. See docs/protocol.md, "Messages".
"""

from struct import pack
from typing import NamedTuple

from tunnel_protocol.capnp_layouts import (
    BODY_PREFIX_BYTES,
    MAX_ENTRIES,
    ROOT,
    TEXT_PADDING,
    check_values,
    checked_name,
)
from tunnel_protocol.capnp_reader import Message, StructView
from tunnel_protocol.errors import ProtocolError
from tunnel_protocol.head import HeaderList

try:
    from tunnel_protocol.capnp_speedups import (
        canonical_body_size,
        canonical_entries,
        cut_bodies,
        encode_body,
        encode_map,
    )
except ImportError:  # the module is not compiled, or compiled modules are not used
    from tunnel_protocol.capnp_layouts import (
        canonical_body_size,
        canonical_entries,
        cut_bodies,
        encode_body,
        encode_map,
    )

__all__ = [
    "Body",
    "Handshake",
    "HandshakeAck",
    "Headers",
    "Trailers",
    "canonical_body_size",
    "cut_bodies",
    "decode_handshake",
    "decode_handshake_ack",
    "decode_message",
    "encode_body",
    "encode_handshake",
    "encode_handshake_ack",
    "encode_headers",
    "encode_trailers",
]

_DISCRIMINANT_HEADERS, _DISCRIMINANT_BODY, _DISCRIMINANT_TRAILERS = 0, 1, 2


class Headers:
    """A headers message."""

    __slots__ = ("entries",)

    def __init__(self, entries: HeaderList) -> None:
        self.entries = entries

    def __eq__(self, other: object) -> bool:
        return self.entries == other.entries if isinstance(other, Headers) else NotImplemented

    def __repr__(self) -> str:
        return f"Headers({self.entries!r})"


class Body:
    """A body message."""

    __slots__ = ("content",)

    def __init__(self, content: bytes) -> None:
        self.content = content

    def __eq__(self, other: object) -> bool:
        return self.content == other.content if isinstance(other, Body) else NotImplemented

    def __repr__(self) -> str:
        return f"Body({self.content!r})"


class Trailers:
    """A trailers message."""

    __slots__ = ("entries",)

    def __init__(self, entries: HeaderList) -> None:
        self.entries = entries

    def __eq__(self, other: object) -> bool:
        return self.entries == other.entries if isinstance(other, Trailers) else NotImplemented

    def __repr__(self) -> str:
        return f"Trailers({self.entries!r})"


class Handshake(NamedTuple):
    """The worker's first message on a reverse tunnel; `auth_token` is None if none was sent."""

    inference_server_id: str
    auth_token: str | None


class HandshakeAck(NamedTuple):
    """The router's answer to a handshake; `reason` is empty if accepted."""

    accepted: bool
    reason: str


def encode_headers(entries: HeaderList) -> bytes:
    """Encode a headers message. Raises `ProtocolError` for entries that cannot be encoded (count, size, non-ASCII values)."""
    return encode_map(_DISCRIMINANT_HEADERS, entries)


def encode_trailers(entries: HeaderList) -> bytes:
    """Encode a trailers message. Raises `ProtocolError` like `encode_headers`."""
    return encode_map(_DISCRIMINANT_TRAILERS, entries)


def encode_handshake(inference_server_id: str, auth_token: str | None) -> bytes:
    """Encode a handshake message, in one segment for any length of the token."""
    identity = inference_server_id.encode()
    token = None if auth_token is None else auth_token.encode()
    id_words = (len(identity) >> 3) + 1
    token_pointer = (0, 0) if token is None else (id_words << 2 | 1, (len(token) + 1) << 3 | 2)
    texts = [identity, TEXT_PADDING[len(identity) & 7]]
    if token is not None:
        texts += [token, TEXT_PADDING[len(token) & 7]]
    words = 3 + sum(map(len, texts)) // 8
    head = pack("<IIIIIIII", 0, words, 0, 2 << 16, 1 << 2 | 1, (len(identity) + 1) << 3 | 2, *token_pointer)
    return b"".join((head, *texts))


def encode_handshake_ack(accepted: bool, reason: str = "") -> bytes:
    """Encode a handshake ack message."""
    text = reason.encode()
    words = 3 + (len(text) >> 3) + 1
    head = pack("<II8sQII", 0, words, ROOT, int(accepted), 1, (len(text) + 1) << 3 | 2)
    return b"".join((head, text, TEXT_PADDING[len(text) & 7]))


def decode_message(data: bytes) -> Headers | Body | Trailers:
    """Decode a message of a request stream, which must fill `data`. Raises `ProtocolError`."""
    entries = canonical_entries(data)
    if entries is not None:
        return Headers(entries)
    if len(data) >= BODY_PREFIX_BYTES:
        size = canonical_body_size(data, 0)
        if size >= 0 and len(data) - BODY_PREFIX_BYTES >= (size + 7) & ~7:
            return Body(data[BODY_PREFIX_BYTES : BODY_PREFIX_BYTES + size])
    return _decode_any(data)


def decode_handshake(data: bytes) -> Handshake:
    """Decode a handshake, which must fill `data`; the id is checked before the token. Raises `ProtocolError`."""
    message = Message(data)
    root = message.root()
    identity = _utf8(message.text(root, 0) or b"", "inference_server_id")
    token = message.text(root, 1)
    return Handshake(identity, None if token is None else _utf8(token, "auth_token"))


def decode_handshake_ack(data: bytes) -> HandshakeAck:
    """Decode a handshake ack, which must fill `data`. Raises `ProtocolError`."""
    message = Message(data)
    root = message.root()
    return HandshakeAck(bool(message.uint16(root) & 1), _utf8(message.text(root, 0) or b"", "reason"))


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
    check_values(entries)
    return entries


def _utf8(text: bytes, field: str) -> str:
    try:
        return text.decode()
    except UnicodeDecodeError:
        raise ProtocolError(f"{field} is not UTF-8") from None
