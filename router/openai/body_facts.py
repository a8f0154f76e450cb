"""What the estimate of input tokens and the affinity key need of a body. No I/O.

Members of a type that nobody expects count nothing: the engine decides about them.
"""

from typing import Any, Final

import msgspec

from router.openai.endpoints import Endpoint, Kind
from router.openai.json_body import JsonObject
from router.openai.ports import BodyFacts
from router.openai.wire import decode_items, decode_message

# Bound once: looking a member up in its enum takes long (Python 3.11).
_CHAT: Final = Kind.CHAT
_COMPLETION: Final = Kind.COMPLETION
_EMBEDDING: Final = Kind.EMBEDDING
_RESPONSE: Final = Kind.RESPONSE
_BRACKET: Final = ord("[")
_FIXED: Final = ("developer", "system")
_NOT_TEXT: Final = ("image_url", "input_image", "input_audio", "input_file", "file", "video_url", "audio")
_BYTES_PER_QUARTER: Final = 4


class _Counts:
    """Counts texts, images and the rest."""

    __slots__ = ("images", "images_low", "pieces", "text_bytes")

    def __init__(self) -> None:
        self.text_bytes = 0
        self.pieces = 0
        self.images = 0
        self.images_low = 0

    def text(self, value: Any) -> None:
        """Count a text, or the JSON of anything else that is not null."""
        if isinstance(value, str):
            self.text_bytes += len(value) if value.isascii() else len(value.encode("utf-8", "surrogatepass"))
        elif value is not None:
            self.text_bytes += len(msgspec.json.encode(value))

    def content(self, value: Any) -> None:
        """Count the content of a message: a text or parts."""
        if isinstance(value, list):
            for part in value:
                self.part(part)
        else:
            self.text(value)

    def part(self, part: Any) -> None:
        """Count one part of a content."""
        if not isinstance(part, dict):
            self.text(part)
            return
        kind = part.get("type")
        if kind in ("image_url", "input_image"):
            image = part.get("image_url")
            detail = image.get("detail") if isinstance(image, dict) else part.get("detail")
            if detail == "low":
                self.images_low += 1
            else:
                self.images += 1
        elif kind not in _NOT_TEXT:
            self.text(part.get("text", part.get("refusal")))

    def message(self, message: Any) -> None:
        """Count a message or an item of the Responses API."""
        self.pieces += 1
        if not isinstance(message, dict):
            self.text(message)
            return
        for name, value in message.items():
            if name == "content":
                self.content(value)
            elif name not in ("role", "type", "id", "status", "audio"):
                self.text(value)


def facts_of(endpoint: Endpoint, body: JsonObject) -> BodyFacts:
    """What the estimate needs of a body."""
    if endpoint.kind is _EMBEDDING:
        return _inputs(body.members.get("input"))
    if endpoint.kind is _COMPLETION:
        return _prompts(body.members.get("prompt"))
    counts = _Counts()
    member = "messages" if endpoint.kind is _CHAT else "input"
    found = decoded(body.members.get(member))
    if isinstance(found, list):
        for message in found:
            counts.message(message)
    elif found is not None:
        counts.message({"content": found})
    instructions = decoded(body.members.get("instructions"))
    if isinstance(instructions, str):
        counts.message({"content": instructions})
    tools = sum(_size(body.members.get(name)) for name in ("tools", "functions", "response_format", "text"))
    # By position, which is quicker; token ids are none here.
    return BodyFacts(counts.text_bytes, counts.pieces, tools, 0, counts.images_low, counts.images)


def prefix_of(endpoint: Endpoint, body: JsonObject) -> tuple[bytes, ...]:
    """The parts of a body that stay the same in all turns of a conversation, as `Affinity.of_prefix` takes them."""
    if endpoint.kind is _CHAT:
        items, first = body.members.get("messages"), _bytes(None)
    elif endpoint.kind is _RESPONSE:
        items, first = body.members.get("input"), _bytes(body.members.get("instructions"))
    else:
        return ()
    if items is None:
        return ()
    if memoryview(items)[0] != _BRACKET:
        parts: tuple[bytes, ...] = () if bytes(items) == b"null" else (bytes(items),)
    else:
        parts = tuple(_until_first_user(items))
    return (*_bytes(body.members.get("tools")), *first, *parts) if parts else ()


def _until_first_user(messages: msgspec.Raw) -> list[bytes]:
    """The JSON of the system and developer messages, and of the first one of a user."""
    found: list[bytes] = []
    for raw in decode_items(messages):
        try:
            role = decode_message(raw).role
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            continue  # no message
        if role == "user":
            found.append(bytes(raw))
            break
        if role in _FIXED:
            found.append(bytes(raw))
    return found


def session_of(endpoint: Endpoint, body: JsonObject) -> str | None:
    """The session that a body names: `prompt_cache_key`, else for the Responses API the id of its conversation."""
    if endpoint.kind is _EMBEDDING:
        return None
    key = decoded(body.members.get("prompt_cache_key"))
    if isinstance(key, str) and key:
        return key
    if endpoint.kind is not _RESPONSE:
        return None
    conversation = decoded(body.members.get("conversation"))
    if isinstance(conversation, dict):
        conversation = conversation.get("id")
    return conversation if isinstance(conversation, str) and conversation else None


def output_limit(endpoint: Endpoint, body: JsonObject) -> int | None:
    """The client's limit of output tokens, over all choices; None without a usable one."""
    for name in endpoint.output_limits:
        found = decoded(body.members.get(name))
        if isinstance(found, int) and not isinstance(found, bool) and 0 < found < 1 << 53:
            return found
    return None


def _inputs(raw: msgspec.Raw | None) -> BodyFacts:
    """Facts of the input of embeddings: texts are rounded up to tokens each."""
    found = decoded(raw)
    texts = [found] if isinstance(found, str) else found if isinstance(found, list) else []
    quarters = pieces = ids = 0
    for text in texts:
        if isinstance(text, str):
            if text:
                pieces += 1
                size = len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
                quarters += -(-size // _BYTES_PER_QUARTER)
        elif isinstance(text, list):
            ids += len(text)
        elif isinstance(text, int):
            ids += 1
    return BodyFacts(pieces=pieces, quarters=quarters, token_ids=ids)


def _prompts(raw: msgspec.Raw | None) -> BodyFacts:
    """Facts of the prompts of a completion."""
    counts = _Counts()
    found = decoded(raw)
    ids = 0
    for prompt in found if isinstance(found, list) else [found]:
        if isinstance(prompt, str):
            counts.message({"content": prompt})
        elif isinstance(prompt, list):
            ids += len(prompt)
        elif isinstance(prompt, int):
            ids += 1
    return BodyFacts(text_bytes=counts.text_bytes, pieces=counts.pieces, token_ids=ids)


def decoded(raw: msgspec.Raw | None) -> Any:
    """A value; None if it is absent, or has numbers that cannot be represented."""
    if raw is None:
        return None
    try:
        return msgspec.json.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def encoded(text: str) -> bytes:
    """The JSON of a text."""
    return msgspec.json.encode(text)


def _size(raw: msgspec.Raw | None) -> int:
    return 0 if raw is None or bytes(raw) == b"null" else len(memoryview(raw))


def _bytes(raw: msgspec.Raw | None) -> tuple[bytes, ...]:
    return () if raw is None else (bytes(raw),)
