"""Streams of engines, without sockets: events, the chunks a client gets, and the answers made of them."""

import json

import pytest

from router.openai import response_events
from router.openai.aggregation import ANSWER, AnswerTooLargeError, ChunkAggregator
from router.openai.chunk_rewriter import ChunkRewriter, EngineStreamError
from router.openai.ports import Usage
from router.openai.response_events import ResponseEvents
from router.openai.sse import EVENT, EventSplitter, EventTooLongError, data_of, with_data
from support.front_in_memory import DONE, chunk, event

USAGE = {"prompt_tokens": 5, "completion_tokens": 7, "prompt_tokens_details": {"cached_tokens": 3}}


# --- events


@pytest.mark.parametrize("piece", [1, 2, 3, 1000])
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_events_are_found_whatever_the_line_ends_and_pieces(piece, end):
    text = end.join([b": ping", b"", b"event: a", b"data: 1", b"data: 2", b"", b"", b"", b"data:3", b"", b"data: cut"])
    splitter, found = EventSplitter(), []
    for at in range(0, len(text), piece):
        found += splitter.feed(text[at : at + piece])
    assert found == [b": ping\n\n", b"event: a\ndata: 1\ndata: 2\n\n", b"data:3\n\n"]
    assert [data_of(one) for one in found] == [None, b"1 2", b"3"]
    assert splitter.pending == b"data: cut"


def test_data_is_exchanged_and_other_lines_stay():
    assert with_data(b"data: 1\n\n", b"2") == b"data: 2\n\n"
    assert with_data(b"event: a\ndata: 1\ndata: 1\nid: 7\n\n", b"2") == b"event: a\nid: 7\ndata: 2\n\n"


def test_an_event_is_bounded():
    splitter = EventSplitter()
    assert splitter.feed(b"d" * EVENT.bytes) == []
    with pytest.raises(EventTooLongError):
        splitter.feed(b"d")


# --- chunks


def rewritten(*events, keep_usage=False):
    rewriter = ChunkRewriter(b'"f/m"', keep_usage=keep_usage)
    return rewriter, b"".join(rewriter.feed(one) for one in events)


def test_the_clients_model_name_is_in_every_chunk_wherever_the_engine_has_it():
    _, found = rewritten(chunk({"content": "a"}), chunk({"content": "b"}), chunk({"content": "c"}, model="other"))
    assert found == b"".join(chunk({"content": text}, model="f/m") for text in "abc")
    late = {"choices": [{"index": 0, "delta": {"content": '"model":"m"'}}], "model": "m"}
    _, found = rewritten(event(late), event(late))
    assert found == event({**late, "model": "f/m"}) * 2
    _, found = rewritten(event({"id": "c", "choices": []}))
    assert found == event({"id": "c", "choices": []})


def test_texts_that_look_like_members_change_nothing():
    for text in ('"usage":{}', '"error":1', '\\"usage', '","usage":null}', "data: [DONE]", "\n\n"):
        rewriter, found = rewritten(chunk({"content": "a"}), chunk({"content": text}))
        assert found == chunk({"content": "a"}, model="f/m") + chunk({"content": text}, model="f/m")
        assert (rewriter.usage, rewriter.done) == (None, False)


def test_usage_is_taken_out_of_chunks_in_any_form_and_remembered():
    last = {"id": "c1", "object": "chat.completion.chunk", "created": 7, "model": "m", "choices": []}
    events = (
        chunk({"content": "a"}, usage=None),
        chunk({"content": "b"}, usage=None),
        chunk({"content": "c"}, usage={"prompt_tokens": 5, "completion_tokens": 1}),
        chunk({}, "stop", usage=None),
        event({**last, "usage": USAGE}),
        DONE,
    )
    rewriter, found = rewritten(*events)
    texts = [chunk({"content": text}, model="f/m") for text in "abc"]
    assert found == b"".join(texts) + chunk({}, "stop", model="f/m") + DONE
    assert (rewriter.usage, rewriter.content_events, rewriter.complete) == (Usage(5, 7, 3, 0), 4, True)
    rewriter, found = rewritten(*events, keep_usage=True)
    assert found.count(b'"usage"') == 5
    assert rewriter.usage == Usage(5, 7, 3, 0)


@pytest.mark.parametrize("odd", [b"{}", b"3", b'{"prompt_tokens":1},"x":{"a":1}', b'{"prompt_tokens":1}, "more":1'])
def test_usage_at_the_end_that_is_not_all_there_is_stays_with_the_rest(odd):
    """The rest of a chunk is passed on as it is, and so is usage without counts."""
    begin = b'data: {"id":"c","model":"m"'
    first = begin + b',"choices":[{"index":0,"delta":{}}]}\n\n'
    rewriter, found = rewritten(first, begin + b',"choices":[],"usage":' + odd + b"}\n\n")
    given, _, more = odd.partition(b"},")
    if rewriter.usage is not None:
        assert (rewriter.usage, more.strip()[:1]) == (Usage(1, 0), b'"')
        assert found == first.replace(b'"m"', b'"f/m"')
    else:
        assert json.loads(found.split(b"\n\n")[1][6:]) == {"id": "c", "model": "f/m", "choices": []}, given


def test_usage_that_is_no_json_breaks_the_stream():
    begin = b'data: {"id":"c","model":"m"'
    first = begin + b',"choices":[{"index":0,"delta":{}}]}\n\n'
    with pytest.raises(EngineStreamError) as raised:
        rewritten(first, begin + b',"choices":[],"usage":{"prompt_tokens":}}\n\n')
    assert raised.value.data is None


@pytest.mark.parametrize("routed", [b"", b'"m"'])
@pytest.mark.parametrize("keep_usage", [False, True])
def test_a_stream_whose_chunks_all_have_null_for_usage_is_passed_on(routed, keep_usage):
    events = [chunk({"content": text}, usage=None) for text in "abc"] + [chunk({}, "stop", usage=None)]
    rewriter = ChunkRewriter(b'"f/m"', keep_usage=keep_usage, routed=routed)
    found = [rewriter.feed(one) for one in events]
    kept = {"usage": None} if keep_usage else {}
    assert found[:3] == [chunk({"content": text}, model="f/m", **kept) for text in "abc"]
    assert found[3] == chunk({}, "stop", model="f/m", **kept)
    assert (rewriter.content_events, rewriter.complete, rewriter.usage) == (4, True, None)


def test_empty_lines_before_an_event_change_nothing():
    for first in (b"\n", b"\n\n", b"\n\n\n"):
        rewriter, found = rewritten(first + chunk({"content": "a"}), first + chunk({"content": "b"}))
        assert found.replace(b"\ndata", b"data").lstrip(b"\n").count(b'"model":"f/m"') == 2, found
        assert rewriter.content_events == 2


def test_usage_before_the_model_or_in_the_middle_is_taken_out_too():
    document = {"usage": None, "model": "m", "choices": [{"index": 0, "delta": {"content": "a"}}]}
    expected = {"model": "f/m", "choices": [{"index": 0, "delta": {"content": "a"}}]}
    _, found = rewritten(event(document), event(document))
    assert found == event(expected) * 2
    middle = {"model": "m", "usage": {"prompt_tokens": 1}, "choices": [{"index": 0, "delta": {"content": "a"}}]}
    rewriter, found = rewritten(event(expected | {"model": "m"}), event(middle))
    assert found == event(expected) * 2
    assert rewriter.usage == Usage(1, 0)


def test_a_stream_is_complete_with_done_or_a_reason_and_no_rest():
    assert not rewritten(chunk({"content": "a"}))[0].complete
    assert rewritten(chunk({"content": "a"}), chunk({}, "stop"))[0].complete
    assert rewritten(chunk({"content": "a"}), DONE)[0].complete
    assert not rewritten(chunk({}, "stop"), b"data: {")[0].complete
    assert not rewritten()[0].complete


def test_what_came_before_an_error_event_is_not_lost():
    failure = event({"error": {"message": "no"}})
    rewriter = ChunkRewriter(b'"f/m"', keep_usage=False)
    with pytest.raises(EngineStreamError) as raised:
        rewriter.feed(chunk({"content": "a"}) + failure + chunk({"content": "b"}))
    assert raised.value.before == chunk({"content": "a"}, model="f/m")
    assert raised.value.data == b'{"error":{"message":"no"}}'
    for data in (
        b"{bad",
        b'{"model":"a","choices":[],"x":"\xff"}',
        b'{"model":"a","x":' + b"[" * 9000 + b"]" * 9000 + b"}",
    ):
        with pytest.raises(EngineStreamError) as raised:
            rewriter.feed(b"data: " + data + b"\n\n")
        assert raised.value.data is None


# --- answers made of chunks


def answer(*events):
    aggregator = ChunkAggregator(b'"f/m"')
    for one in events:
        aggregator.feed(one)
    return json.loads(aggregator.answer())


def test_tool_calls_are_put_together_by_their_index():
    calls = [
        [{"index": 0, "id": "call_1", "type": "function", "function": {"name": "add", "arguments": ""}}],
        [{"index": 1, "id": "call_2", "type": "function", "function": {"name": "sub", "arguments": "{}"}}],
        [{"index": 0, "function": {"arguments": '{"a"'}}],
        [{"index": 0, "id": "", "type": "", "function": {"name": "", "arguments": ":1}"}}],
    ]
    found = answer(
        chunk({"role": "assistant", "content": ""}),
        *(chunk({"tool_calls": one}) for one in calls),
        chunk({}, "tool_calls"),
        DONE,
    )
    assert found["choices"] == [
        {
            "index": 0,
            "message": {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": '{"a":1}'}},
                    {"id": "call_2", "type": "function", "function": {"name": "sub", "arguments": "{}"}},
                ],
            },
            "finish_reason": "tool_calls",
        }
    ]


def test_nothing_of_a_message_is_lost():
    found = answer(
        chunk({"role": "assistant", "reasoning_content": "I ", "refusal": None}),
        chunk({"reasoning_content": "think"}),
        chunk({"content": "Hel", "x_extra": 1}),
        chunk({"content": "lo", "x_extra": 2, "annotations": [{"url": "a"}]}),
        chunk({"refusal": "No", "annotations": [{"url": "b"}]}),
        chunk({"refusal": "!", "audio": {"id": "au", "data": "AA"}}),
        chunk({"audio": {"data": "BB", "expires_at": 9}, "function_call": {"name": "f", "arguments": "{"}}),
        chunk({"function_call": {"arguments": "}"}}, "stop", system_fingerprint="fp", service_tier="default"),
        DONE,
    )
    assert found["choices"][0]["message"] == {
        "role": "assistant",
        "content": "Hello",
        "reasoning_content": "I think",
        "refusal": "No!",
        "x_extra": 2,
        "annotations": [{"url": "a"}, {"url": "b"}],
        "audio": {"id": "au", "data": "AABB", "expires_at": 9},
        "function_call": {"name": "f", "arguments": "{}"},
    }
    assert (found["system_fingerprint"], found["service_tier"]) == ("fp", "default")
    assert (found["object"], found["id"], found["created"]) == ("chat.completion", "c1", 7)


def test_choices_are_sorted_and_their_logprobs_joined():
    def of(index, text, **members):
        return event({"model": "m", "choices": [{"index": index, "delta": {"content": text}, **members}]})

    found = answer(
        of(1, "b", logprobs={"content": [{"token": "b", "logprob": -1.5}], "refusal": None}),
        of(0, "a", logprobs={"content": [{"token": "a", "logprob": -0.5}], "refusal": None}),
        of(1, "c", logprobs={"content": [{"token": "c", "logprob": -2.5}]}, token_ids=[3]),
        of(0, "", finish_reason="stop", stop_reason="</s>", token_ids=[1, 2]),
        of(1, "", finish_reason="length", token_ids=[4]),
        DONE,
    )
    assert [choice["message"]["content"] for choice in found["choices"]] == ["a", "bc"]
    assert [choice["finish_reason"] for choice in found["choices"]] == ["stop", "length"]
    assert found["choices"][1]["logprobs"] == {
        "content": [{"token": "b", "logprob": -1.5}, {"token": "c", "logprob": -2.5}],
        "refusal": None,
    }
    assert [choice["token_ids"] for choice in found["choices"]] == [[1, 2], [3, 4]]
    assert found["choices"][0]["stop_reason"] == "</s>"


def test_a_completion_is_put_together():
    def of(text, finish=None, **logprobs):
        choice = {"index": 0, "text": text, "finish_reason": finish, "logprobs": logprobs or None}
        return event({"id": "cmpl", "object": "text_completion", "created": 1, "model": "m", "choices": [choice]})

    usage = event({"id": "cmpl", "object": "text_completion", "model": "m", "choices": [], "usage": USAGE})
    found = answer(
        of("Hel", tokens=["Hel"], token_logprobs=[-1.0], text_offset=[0]),
        of("lo", tokens=["lo"], token_logprobs=[-2.0], text_offset=[3]),
        of("", "stop"),
        usage,
        DONE,
    )
    assert found == {
        "id": "cmpl",
        "object": "text_completion",
        "created": 1,
        "model": "f/m",
        "choices": [
            {
                "index": 0,
                "text": "Hello",
                "finish_reason": "stop",
                "logprobs": {"tokens": ["Hel", "lo"], "token_logprobs": [-1.0, -2.0], "text_offset": [0, 3]},
            }
        ],
        "usage": USAGE,
    }


def test_a_long_text_costs_no_more_for_each_piece():
    found = answer(*(chunk({"content": f"{number} "}) for number in range(20_000)), chunk({}, "stop"))
    assert found["choices"][0]["message"]["content"] == "".join(f"{number} " for number in range(20_000))


def test_an_answer_that_is_collected_is_bounded(monkeypatch):
    aggregator = ChunkAggregator(b'"m"')
    padding = b": " + b"x" * (1 << 20) + b"\n\n"
    for _ in range(ANSWER.bytes // len(padding)):
        aggregator.feed(padding)
    with pytest.raises(AnswerTooLargeError):
        aggregator.feed(padding)
    monkeypatch.setattr(response_events, "_MAX_ANSWER", 100)
    events = ResponseEvents(b'"m"', collect=True)
    with pytest.raises(AnswerTooLargeError):
        events.feed(b"x" * 101)


@pytest.mark.parametrize("data", [b"{bad", b"[]", b"1", b'{"error":"no"}', b"\xff"])
def test_what_is_no_chunk_is_an_error(data):
    with pytest.raises(EngineStreamError):
        ChunkAggregator(b'"m"').feed(b"data: " + data + b"\n\n")


# --- responses

RESPONSE = {
    "id": "r",
    "status": "completed",
    "model": "m",
    "output": [],
    "usage": {"input_tokens": 3, "output_tokens": 4},
}


def test_the_clients_model_name_is_in_the_events_that_have_a_response():
    events = ResponseEvents(b'"f/m"', collect=False)
    created = event({"type": "response.created", "response": {**RESPONSE, "usage": None}}, "response.created")
    delta = event({"type": "response.output_text.delta", "delta": "Hi"}, "response.output_text.delta")
    done = event({"type": "response.completed", "response": RESPONSE}, "response.completed")
    assert events.feed(created + delta) == created.replace(b'"m"', b'"f/m"') + delta
    assert not events.complete
    assert events.feed(done) == done.replace(b'"m"', b'"f/m"')
    assert (events.complete, events.content_events, events.usage) == (True, 1, Usage(3, 4))


@pytest.mark.parametrize("status", ["completed", "failed", "incomplete"])
def test_the_last_event_is_the_answer_without_streaming(status):
    events = ResponseEvents(b'"f/m"', collect=True)
    events.feed(event({"type": f"response.{status}", "response": {**RESPONSE, "status": status, "x": 1.5}}))
    assert json.loads(events.answer) == {**RESPONSE, "status": status, "x": 1.5, "model": "f/m"}


def test_errors_in_a_stream_of_responses_are_told():
    with pytest.raises(EngineStreamError):
        ResponseEvents(b'"m"', collect=False).feed(event({"error": {"message": "no"}}))
    with pytest.raises(EngineStreamError):
        ResponseEvents(b'"m"', collect=False).feed(b'data: {"response"\n\n')
    events = ResponseEvents(b'"m"', collect=False)
    own = event({"type": "error", "error": None, "code": "x", "message": "no"}, "error")
    assert events.feed(own + DONE) == own + DONE
    assert events.complete


def test_an_answer_that_has_its_model_twice_and_large_is_an_error():
    twice = b'{"model":[%b 1],"model":"m","response":{}}' % (b'"x",' * 20_000)
    for stream in (ChunkRewriter(b'"f/m"', keep_usage=False), ResponseEvents(b'"f/m"', collect=False)):
        text = twice if isinstance(stream, ChunkRewriter) else b'{"response":' + twice + b"}"
        with pytest.raises(EngineStreamError):
            stream.feed(b"data: " + text + b"\n\n")
