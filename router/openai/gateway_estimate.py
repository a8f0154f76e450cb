"""The gateway's estimate of input tokens, for the mode `gateway`: both route and limit alike then.

With `T(s)` = 0 for an empty text, else 5 + ceil(bytes / 4), and `V(x)` = `T` of the compact JSON of x. What the gateway drops from a
body (docs/openai.md) is not known here: members that it would not have decoded are counted only if its formula names them.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Final

_OF_A_MODEL: Final = {"llama2-70b-4096": 15, "mixtral-8x7b-32768": 1, "gemma-7b-it": 2}
_OF_A_MESSAGE: Final = 3 + 2
_OF_A_TEXT: Final = 5
_RESPONSES_SURCHARGE: Final = 6
"""An accident of the gateway: the text `auto` of an internal member."""
_COUNTED_ITEMS: Final = ("message", "function_call", "function_call_output", "mcp_call")
_TEXT_PARTS: Final = ("text", "input_text", "output_text")


def chat_tokens(body: Mapping[str, object], model: str) -> int:
    """Of a chat body for the routed `model`."""
    total = _OF_A_MODEL.get(model, 0)
    messages = body.get("messages")
    if isinstance(messages, list):
        total += sum(_message_tokens(one) for one in messages if isinstance(one, dict))
    for name in ("tools", "functions", "response_format", "metadata"):
        total += _value_tokens(body.get(name))
    for name in ("tool_choice", "function_call"):
        total += _text_or_value_tokens(body.get(name))
    stop = body.get("stop")
    for one in stop if isinstance(stop, list) else [stop]:
        total += _text_tokens(one)
    for name in ("user", "reasoning_format", "reasoning_effort"):
        total += _text_tokens(body.get(name))
    return total


def responses_tokens(body: Mapping[str, object], model: str) -> int:
    """Of a body of `/v1/responses`: converted to the shape of a chat first."""
    messages: list[object] = []
    if body.get("instructions"):
        messages.append({"content": body["instructions"]})
    given = body.get("input")
    if isinstance(given, str):
        messages.append({"content": given})
    elif isinstance(given, list):
        messages += [found for one in given if (found := _item_message(one)) is not None]
    chat: dict[str, object] = {"messages": messages}
    for name in ("tools", "tool_choice", "metadata"):
        chat[name] = body.get(name)
    chat["user"] = body.get("safety_identifier") or body.get("user")
    return chat_tokens(chat, model) + _RESPONSES_SURCHARGE


def embeddings_tokens(given: object) -> int:
    """Of the `input` of an embeddings body; lists of token ids count by their length."""
    if isinstance(given, str):
        return _text_tokens(given)
    if not isinstance(given, Sequence):
        return 0
    return sum(_text_tokens(one) if isinstance(one, str) else len(one) if isinstance(one, list) else 1 for one in given)


def _message_tokens(message: Mapping[str, object]) -> int:
    total = _OF_A_MESSAGE + _content_tokens(message.get("content"))
    name = message.get("name")
    if name:
        total += _text_tokens(name) + 1
    for member in ("tool_call_id", "reasoning", "channel"):
        total += _text_tokens(message.get(member))
    for member in ("tool_calls", "function_call"):
        total += _value_tokens(message.get(member))
    return total


def _content_tokens(content: object) -> int:
    if isinstance(content, str):
        return _bytes(content) // 4
    if not isinstance(content, list):
        return 0
    total = 0
    for part in content:
        if isinstance(part, str):
            total += _bytes(part) // 4
        elif isinstance(part, dict):
            text = part.get("text")
            if part.get("type") in _TEXT_PARTS and isinstance(text, str):
                total += _bytes(text) // 4
            else:
                total += _value_tokens({name: value for name, value in part.items() if name != "type"})
    return total


def _item_message(item: object) -> dict[str, object] | None:
    """An item of `input` as a message; None for kinds that count nothing."""
    if not isinstance(item, dict) or item.get("type", "message") not in _COUNTED_ITEMS:
        return None
    kind = item.get("type", "message")
    if kind == "message":
        return {"content": item.get("content")}
    if kind == "function_call_output":
        return {"content": item.get("output"), "tool_call_id": item.get("call_id")}
    call = {"name": item.get("name"), "arguments": item.get("arguments")}
    return {"tool_calls": [{"id": item.get("call_id") or item.get("id"), "type": "function", "function": call}]}


def _text_tokens(text: object) -> int:
    return _OF_A_TEXT + -(-_bytes(text) // 4) if isinstance(text, str) and text else 0


def _value_tokens(value: object) -> int:
    if value is None:
        return 0
    return _text_tokens(json.dumps(value, ensure_ascii=False, separators=(",", ":")))


def _text_or_value_tokens(value: object) -> int:
    return _text_tokens(value) if isinstance(value, str) else _value_tokens(value)


def _bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
