"""The checks of the mode `gateway`: the routing key of a body, and the texts with which the gateway refuses bodies. No I/O.

The gateway decodes into fixed types and drops what it does not know. Here nothing is dropped, but what it would have refused is
refused, with its text as far as that does not come from its decoder's inside. Source: docs/openai.md, "Replacing the gateway".
"""

import json
from typing import Any, Final

import msgspec

from router.openai.endpoints import Endpoint, Kind
from router.openai.errors import RequestError
from router.openai.gateway_texts import refused
from router.openai.model_names import split

NO_PREFIX: Final = "model prefix is required"
NO_SUFFIX: Final = "model suffix is required after routing key"
_WRONG_TYPE: Final = "code=415, message=Unsupported Media Type"
_MOST_INPUTS: Final = 2048
_MAX_U32: Final = (1 << 32) - 1
_COUNTS: Final = ("max_tokens", "max_completion_tokens", "n", "top_logprobs")
_TIERS: Final = ("auto", "on_demand", "flex", "batch", "performance")
_PARTS: Final = ("text", "image_url", "document")
_TOOLS: Final = ("function", "browser_search", "code_interpreter", "mcp")
_KINDS: Final = {str: "string", bool: "bool", int: "number", float: "number", list: "array", dict: "object"}


def routing_key_of(raw: bytes, content_type: bytes | None) -> str | None:
    """The routing key in a body, as the gateway looks for it before it asks who the caller is; None without one."""
    kind = b"" if content_type is None else content_type.partition(b";")[0].strip().lower()
    if kind != b"application/json":
        return None
    try:
        document = msgspec.json.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    model = document.get("model") if isinstance(document, dict) else None
    if not isinstance(model, str):
        return None
    prefix, slash, _ = model.partition("/")
    if not slash or not prefix:
        return None
    found = split(f"{prefix}/m")
    return None if found is None else found.routing_key


def decode(endpoint: Endpoint, raw: bytes, content_type: bytes | None) -> dict[str, Any]:
    """The body as the gateway's lenient decoder reads it. Raises `RequestError`."""
    if not raw:
        return {}
    if content_type is None or not content_type.startswith(b"application/json"):
        raise _refusal(NO_PREFIX if endpoint.kind is Kind.EMBEDDING else _WRONG_TYPE)
    try:
        text = raw.decode()
        found, _ = json.JSONDecoder().raw_decode(text, len(text) - len(text.lstrip(" \t\n\r")))
    except json.JSONDecodeError as error:
        raise _refusal(_syntax(error)) from None
    except (UnicodeDecodeError, RecursionError):
        raise _refusal("code=400, message=Syntax error: the body is not JSON in UTF-8") from None
    if not isinstance(found, dict):
        raise _refusal(_unmarshal("", "object", found))
    return found


def check_types(endpoint: Endpoint, document: dict[str, Any]) -> None:
    """Raise `RequestError` for members that the gateway's decoder refuses."""
    if endpoint.kind is Kind.CHAT:
        _check_chat_types(document)
    elif endpoint.kind is Kind.RESPONSE:
        _check_response(document)


def model_of(document: dict[str, Any], routing_key: str | None) -> str:
    """The model's name without its prefix. Raises `RequestError`."""
    model = document.get("model") or ""
    if not isinstance(model, str):
        raise _refusal(_unmarshal("model", "string", model))
    if routing_key is None:
        raise _refusal(NO_PREFIX)
    suffix = model.partition("/")[2]
    if not suffix:
        raise _refusal(NO_SUFFIX)
    return suffix


def check_contents(endpoint: Endpoint, document: dict[str, Any]) -> None:
    """What is checked after the model. Raises `RequestError`."""
    if endpoint.kind is Kind.CHAT and not document.get("messages"):
        raise _refusal("messages is required")
    if endpoint.kind is Kind.EMBEDDING:
        _check_input(document.get("input"))


def _check_chat_types(document: dict[str, Any]) -> None:
    model, messages = document.get("model"), document.get("messages")
    if model is not None and not isinstance(model, str):
        raise _refusal(_unmarshal("model", "string", model))
    if messages is not None and not isinstance(messages, list):
        raise _refusal(_unmarshal("messages", "[]api.Message", messages))
    for message in messages or ():
        content = message.get("content") if isinstance(message, dict) else None
        for part in content if isinstance(content, list) else ():
            kind = part.get("type") if isinstance(part, dict) else "text"
            if kind not in _PARTS:
                supported = " ".join(_PARTS)
                raise _refusal(f"`content`: unknown content type {kind}. Supported content types are: [{supported}]")
    for name in _COUNTS:
        value = document.get(name)
        if value is not None and not (
            isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MAX_U32
        ):
            raise _refusal(_unmarshal(name, "uint32", value))
    tier = document.get("service_tier")
    if tier is not None and tier not in _TIERS:
        raise _refusal(f'servicetiers: invalid tier value "{tier}"')


def _check_response(document: dict[str, Any]) -> None:
    model, conversation = document.get("model"), document.get("conversation")
    if model is not None and not isinstance(model, str):
        raise _refusal(_unmarshal("model", "string", model))
    if conversation is not None and not isinstance(conversation, dict):
        raise _refusal(_unmarshal("conversation", "responses.Conversation", conversation))
    if not model:
        raise _refusal("`model`: is required")
    tools = document.get("tools")
    if tools is not None and not isinstance(tools, list):
        raise _refusal(_unmarshal("tools", "[]responses.Tool", tools))
    for number, tool in enumerate(tools or ()):
        kind = tool.get("type") if isinstance(tool, dict) else None
        if kind not in _TOOLS and not str(kind).startswith("web_search_preview"):
            raise _refusal(f"`tools`: `tools[{number}]`: unknown tool type {kind}")
    if document.get("input") in (None, []):
        raise _refusal("`input`: `input`: must provide input")


def _check_input(found: Any) -> None:
    if not found:
        raise _refusal("'input' array must not be empty")
    if isinstance(found, str):
        return
    if not isinstance(found, list) or any(not isinstance(one, str) for one in found):
        text = "`input`: Must be either a string or an array of string"
        raise _refusal(f"code=400, message={text}, internal={text}")
    if len(found) > _MOST_INPUTS:
        raise _refusal("'input' array is too large, must be less than 2048 elements")
    for number, one in enumerate(found):
        if not one:
            raise _refusal(f"'input.{number}' must not be empty")


def _refusal(message: str) -> RequestError:
    return RequestError(refused(400, message))


def _unmarshal(field: str, expected: str, value: Any) -> str:
    """The beginning of what the gateway's decoder says of a value of another type."""
    kind = _KINDS.get(type(value), "null")
    if kind == "number":
        kind = f"number {json.dumps(value)}"
    return f"code=400, message=Unmarshal type error: expected={expected}, got={kind}, field={field}"


def _syntax(error: json.JSONDecodeError) -> str:
    """What the gateway's decoder says of a syntax error."""
    if error.pos >= len(error.doc):
        return "code=400, message=unexpected EOF, internal=unexpected EOF"
    found = error.doc[error.pos]
    where = "looking for beginning of value"
    if error.msg.startswith("Expecting property name"):
        where = "looking for beginning of object key string"
    elif error.msg.startswith("Expecting ':'"):
        where = "after object key"
    elif error.msg.startswith("Expecting ','"):
        where = "after object key:value pair"
    offset = len(error.doc[: error.pos].encode()) + 1
    text = f"invalid character '{found}' {where}"
    return f"code=400, message=Syntax error: offset={offset}, error={text}, internal={text}"
