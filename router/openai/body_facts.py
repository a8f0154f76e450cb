"""What the estimate of input tokens and the affinity key need of a body. No I/O.

Members of a type that nobody expects count nothing: the engine decides about them.
"""

from typing import Any, Final

import msgspec

from router.openai.endpoints import Endpoint, Kind
from router.openai.json_body import JsonObject, decoded
from router.openai.ports import BodyFacts
from router.openai.wire import NULL, decode_items, decode_message

# Bound once: looking a member up in its enum takes long (Python 3.11).
_CHAT: Final = Kind.CHAT
_COMPLETION: Final = Kind.COMPLETION
_EMBEDDING: Final = Kind.EMBEDDING
_RESPONSE: Final = Kind.RESPONSE
_BRACKET: Final = ord("[")
_BLANKS: Final = b" \t\n\r"
_FIXED: Final = ("developer", "system")
_NOT_TEXT: Final = ("image_url", "input_image", "input_audio", "input_file", "file", "video_url", "audio")
_BYTES_PER_QUARTER: Final = 4
_TOOLS: Final = ("tools", "functions", "response_format", "text")


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
        content = message.get("content")
        if content is not None and len(message) == 2 and "role" in message:
            self.content(content)  # nearly always that is all there is
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
    found = body.value(member)
    if isinstance(found, list):
        for message in found:
            counts.message(message)
    elif found is not None:
        counts.message({"content": found})
    members = body.members
    if "instructions" in members:
        instructions = decoded(members["instructions"])
        if isinstance(instructions, str):
            counts.message({"content": instructions})
    tools = 0
    for name in _TOOLS:
        if name in members:
            tools += _size(members[name])
    # By position, which is quicker; token ids are none here.
    return BodyFacts(counts.text_bytes, counts.pieces, tools, 0, counts.images_low, counts.images)


def prefix_of(endpoint: Endpoint, body: JsonObject) -> tuple[bytes, ...]:
    """The parts of a body that stay the same in all turns of a conversation, as `Affinity.of_prefix` takes them."""
    members = body.members
    if endpoint.kind is _CHAT:
        member = "messages"
    elif endpoint.kind is _RESPONSE:
        member = "input"
    else:
        return ()
    items = members.get(member)
    if items is None:
        return ()
    document = body.value(member)
    parts: list[bytes] = []
    if isinstance(document, list):
        _until_first_user(items, document, parts)
    elif memoryview(items)[0] == _BRACKET:
        _until_first_user(items, None, parts)
    elif items != NULL:
        parts.append(bytes(items))
    if parts:
        if member == "input" and "instructions" in members:
            parts.insert(0, bytes(members["instructions"]))
        if "tools" in members:
            parts.insert(0, bytes(members["tools"]))
    return tuple(parts)


def _until_first_user(messages: msgspec.Raw, document: list[Any] | None, found: list[bytes]) -> None:
    """Add the JSON of the system and developer messages, and of the first one of a user, to `found`.

    `document` are the messages, None if they have numbers that cannot be represented.
    """
    if document is not None and len(document) == 1:
        message = document[0]
        role = message.get("role") if isinstance(message, dict) else None
        if role == "user" or role in _FIXED:
            found.append(bytes(messages)[1:-1].strip(_BLANKS))
        return
    for at, raw in enumerate(decode_items(messages)):
        if document is None:
            role = _role(raw)
        else:
            message = document[at]
            role = message.get("role") if isinstance(message, dict) else None
        if role == "user":
            found.append(bytes(raw))
            return
        if role in _FIXED:
            found.append(bytes(raw))


def _role(message: msgspec.Raw) -> object:
    """The role in the JSON of a message; None if it is none."""
    try:
        return decode_message(message).role
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def session_of(endpoint: Endpoint, body: JsonObject) -> str | None:
    """The session that a body names: `prompt_cache_key`, else for the Responses API the id of its conversation."""
    if endpoint.kind is _EMBEDDING:
        return None
    given = body.members.get("prompt_cache_key")
    if given is not None:
        key = decoded(given)
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
        given = body.members.get(name)
        found = None if given is None else decoded(given)
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


def encoded(text: str) -> bytes:
    """The JSON of a text."""
    return msgspec.json.encode(text)


def _size(raw: msgspec.Raw | None) -> int:
    return 0 if raw is None or raw == NULL else len(memoryview(raw))
