"""What the estimate and the affinity key need of bodies: texts, images, tools, token ids, sessions, the beginning of a conversation."""

import json
from typing import Any

import pytest

from router.openai.body_facts import facts_of, output_limit, prefix_of, session_of
from router.openai.endpoints import CHAT, COMPLETIONS, EMBEDDINGS, RESPONSES
from router.openai.json_body import JsonObject, parse
from router.openai.ports import BodyFacts

SYSTEM, HI = {"role": "system", "content": "be kind"}, {"role": "user", "content": "hi"}


def counts(facts: BodyFacts) -> dict[str, int]:
    names = ("text_bytes", "pieces", "tools_bytes", "token_ids", "images_low", "images", "quarters")
    return {name: getattr(facts, name) for name in names}


def body(**members: Any) -> JsonObject:
    return parse(json.dumps(members, separators=(",", ":")).encode())


def test_texts_of_messages_count_by_their_bytes_and_images_flat() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 1_000_000}}
    low = {"type": "image_url", "image_url": {"url": "x", "detail": "low"}}
    found = facts_of(
        CHAT,
        body(
            messages=[
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "h\u00e9"},
                        image,
                        low,
                        "abc",
                        {"type": "input_audio", "data": "A" * 99},
                    ],
                },
                {"role": "assistant", "content": None, "tool_calls": [{"id": "c"}], "name": "bob"},
                "text",
                {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
            ]
        ),
    )
    assert counts(found) == counts(
        BodyFacts(text_bytes=3 + 3 + len('[{"id":"c"}]') + 3 + 4 + 2, pieces=4, images=1, images_low=1)
    )


def test_tools_and_formats_count_as_the_client_wrote_them() -> None:
    tools = [{"type": "function"}]
    found = facts_of(CHAT, body(messages=[HI], tools=tools, response_format={"type": "json_object"}, functions=None))
    assert found.tools_bytes == len('[{"type":"function"}]') + len('{"type":"json_object"}')


def test_inputs_of_responses_count_with_instructions() -> None:
    assert counts(facts_of(RESPONSES, body(input="hello", instructions="be kind"))) == counts(
        BodyFacts(text_bytes=12, pieces=2)
    )
    items = [
        {"role": "user", "content": [{"type": "input_text", "text": "hello"}]},
        {"type": "function_call_output", "output": "3"},
    ]
    assert counts(facts_of(RESPONSES, body(input=items))) == counts(BodyFacts(text_bytes=6, pieces=2))
    assert counts(facts_of(RESPONSES, body())) == counts(BodyFacts())


def test_prompts_and_inputs_may_be_token_ids() -> None:
    assert counts(facts_of(COMPLETIONS, body(prompt="hello"))) == counts(BodyFacts(text_bytes=5, pieces=1))
    assert counts(facts_of(COMPLETIONS, body(prompt=["a", [1, 2], 3]))) == counts(
        BodyFacts(text_bytes=1, pieces=1, token_ids=3)
    )
    assert counts(facts_of(EMBEDDINGS, body(input=["hello", "", "\u00e9"]))) == counts(BodyFacts(pieces=2, quarters=3))
    assert counts(facts_of(EMBEDDINGS, body(input=[1, 2, 3]))) == counts(BodyFacts(token_ids=3))
    assert counts(facts_of(EMBEDDINGS, body(input=[[1, 2], [3]]))) == counts(BodyFacts(token_ids=3))
    assert counts(facts_of(EMBEDDINGS, body(input={"a": 1}))) == counts(BodyFacts())


def test_the_beginning_of_a_conversation_is_the_same_in_every_turn() -> None:
    first = prefix_of(CHAT, body(messages=[SYSTEM, HI], tools=[1]))
    later = prefix_of(CHAT, body(messages=[SYSTEM, HI, {"role": "assistant", "content": "a"}, HI, SYSTEM], tools=[1]))
    assert first == later == (b"[1]", b'{"role":"system","content":"be kind"}', b'{"role":"user","content":"hi"}')
    assert prefix_of(CHAT, body(messages=[HI])) != prefix_of(CHAT, body(messages=[{**HI, "content": "ho"}]))
    assert prefix_of(RESPONSES, body(input="hi", instructions="x")) == (b'"x"', b'"hi"')
    for endpoint, given in (
        (EMBEDDINGS, body(input="a")),
        (RESPONSES, body()),
        (RESPONSES, body(input=None)),
        (CHAT, body(messages=[1])),
    ):
        assert prefix_of(endpoint, given) == ()


def test_a_first_turn_has_the_beginning_of_the_next_one_whatever_the_blanks() -> None:
    one = b'{"role": "user",\n "content": "hi"}'
    for blanks in (b"", b" ", b"\n\t "):
        first = parse(b'{"messages":[' + blanks + one + blanks + b"]}")
        second = parse(b'{"messages":[' + blanks + one + blanks + b',{"role":"assistant","content":"a"}]}')
        assert prefix_of(CHAT, first) == prefix_of(CHAT, second) == (one,)
    assert prefix_of(CHAT, parse(b'{"messages":["text"]}')) == ()


def test_sessions_are_named_by_the_body() -> None:
    assert session_of(CHAT, body(prompt_cache_key="k", conversation="c")) == "k"
    assert session_of(CHAT, body(conversation="c")) is None
    assert session_of(RESPONSES, body(conversation="c")) == session_of(RESPONSES, body(conversation={"id": "c"})) == "c"
    for given in (
        body(prompt_cache_key=""),
        body(prompt_cache_key=3),
        body(conversation={"id": 3}),
        body(conversation=[]),
    ):
        assert session_of(RESPONSES, given) is None
    assert session_of(EMBEDDINGS, body(prompt_cache_key="k")) is None


@pytest.mark.parametrize(
    ("members", "limit"),
    [
        ({"max_tokens": 5}, 5),
        ({"max_tokens": 5, "max_completion_tokens": 7}, 7),
        ({"max_completion_tokens": None, "max_tokens": 5}, 5),
        ({"max_tokens": -1}, None),
        ({"max_tokens": 1.5}, None),
        ({"max_tokens": True}, None),
        ({"max_tokens": 1 << 60}, None),
        ({}, None),
    ],
)
def test_the_limit_of_output_tokens_is_a_positive_whole_number(members: dict[str, Any], limit: int | None) -> None:
    assert output_limit(CHAT, body(**members)) == limit


def test_members_of_types_that_nobody_expects_do_no_harm() -> None:
    odd: list[Any] = [
        {"role": [1], "content": [{"type": [2]}, {"type": {}}, 3]},
        {"role": {}, "content": {"a": 1}},
        [],
        None,
    ]
    facts_of(CHAT, body(messages=odd))
    assert prefix_of(CHAT, body(messages=odd)) == ()


def test_numbers_that_nothing_can_hold_count_nothing() -> None:
    assert counts(facts_of(CHAT, parse(b'{"messages":[1e400]}'))) == counts(BodyFacts())
