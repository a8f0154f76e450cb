"""The gateway's estimate: the values that were observed of it."""

import pytest

from router.openai.gateway_estimate import chat_tokens, embeddings_tokens, responses_tokens


def user(content: object, **more: object) -> dict[str, object]:
    return {"role": "user", "content": content, **more}


@pytest.mark.parametrize(
    ("body", "tokens"),
    [
        ({"messages": [user("hi")]}, 5),
        ({"messages": [user("abcd")]}, 6),
        ({"messages": [user("四個漢字")]}, 8),
        ({"messages": [{"role": "system", "content": "abcd"}, user("abcd")]}, 12),
        ({"messages": [user("hi", name="bob")]}, 12),
        ({"messages": [user("hi")], "stop": "abcd"}, 11),
        ({"messages": [user("hi")], "stop": ["abcd"]}, 11),
        ({"messages": [user("hi")], "user": "u"}, 11),
        ({"messages": [user("hi")], "tool_choice": "auto"}, 11),
        ({"messages": [user(["ab", {"type": "text", "text": "abcd"}])]}, 6),
        ({"messages": [user([{"type": "image_url", "image_url": {"url": "u" * 100}}])]}, 5 + 5 + 31),
        ({"messages": [user(None, tool_call_id="abcd", reasoning="abcd", channel="abcd")]}, 5 + 18),
        ({"messages": [user(7), "no object"], "stop": 3}, 5),
        ({"messages": [user([7, {"type": "text", "text": 5}])]}, 5 + 5 + 3),
        ({"messages": "none"}, 0),
        ({}, 0),
    ],
)
def test_chat(body: dict[str, object], tokens: int) -> None:
    assert chat_tokens(body, "m") == tokens


def test_some_models_cost_more() -> None:
    assert chat_tokens({"messages": [user("hi")]}, "llama2-70b-4096") == 20


@pytest.mark.parametrize(
    ("body", "tokens"),
    [
        ({"input": "hello"}, 12),
        ({"input": "hello", "instructions": "12345678"}, 19),
        ({"input": [{"role": "user", "content": "hello"}]}, 12),
        ({"input": [{"type": "message", "content": [{"type": "input_text", "text": "hello"}]}]}, 12),
        ({"input": [{"type": "reasoning", "summary": ["long " * 100]}, 3]}, 6),
        ({"input": [{"type": "function_call_output", "call_id": "abcd", "output": "abcd"}]}, 6 + 5 + 1 + 6),
        ({"input": 7}, 6),
        ({"input": "hello", "prompt_cache_key": "k" * 100, "safety_identifier": "u", "user": "other"}, 18),
    ],
)
def test_responses(body: dict[str, object], tokens: int) -> None:
    assert responses_tokens(body, "m") == tokens


def test_a_function_call_of_responses_counts_as_a_tool_call() -> None:
    item = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
    assert responses_tokens({"input": [item]}, "m") > 6 + 5 + 5


@pytest.mark.parametrize(
    ("given", "tokens"),
    [("hello world", 8), (["a", "b"], 12), ("", 0), ([], 0), ([1, 2, 3], 3), ([[1, 2], [3]], 3), (None, 0), (5, 0)],
)
def test_embeddings(given: object, tokens: int) -> None:
    assert embeddings_tokens(given) == tokens


def test_half_a_surrogate_pair_is_counted_and_no_error() -> None:
    assert chat_tokens({"messages": [user("\ud800")], "metadata": {"a": "\ud800"}}, "m") == 5 + 5 + 3
