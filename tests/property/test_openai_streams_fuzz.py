"""Bodies of clients and streams of engines, made at random: what is patched is what should be, and nothing depends on how bytes arrive."""

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from router.openai.aggregation import ChunkAggregator
from router.openai.chunk_rewriter import ChunkRewriter, EngineStreamError
from router.openai.errors import RequestError
from router.openai.json_body import parse

texts = st.text(st.characters(codec="utf-8"), max_size=12) | st.sampled_from(
    ['"usage"', '\\"model":"m"', "usage", "model", "data: [DONE]", "\n\n", '","usage":null}', '"finish_reason":"']
)
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 70), 1 << 70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
layouts = st.sampled_from([(",", ":"), (", ", ": "), (" ,\n", "\t: ")])


@given(
    members=st.dictionaries(texts | st.sampled_from(["model", "stream"]), values, max_size=6),
    layout=layouts,
    ascii_only=st.booleans(),
    indent=st.sampled_from([None, 1]),
)
def test_replacing_members_changes_their_values_and_no_other_byte(members, layout, ascii_only, indent):
    text = json.dumps(members, separators=layout, ensure_ascii=ascii_only, indent=indent).encode()
    body = parse(text)
    changes = {"model": b'"new"', "stream": b"true"}
    found = body.replaced(changes)
    assert list(json.loads(found).items()) == list({**members, "model": "new", "stream": True}.items())
    marked = body.replaced({name: b"\0" for name in changes if name in members})
    for piece in marked.split(b"\0"):
        assert piece in text
    without = parse(text).without("model")
    assert json.loads(without) == {name: value for name, value in members.items() if name != "model"}


@given(st.binary(max_size=60) | st.text('{}[]":,\\u01ea tnf.-', max_size=40).map(str.encode))
def test_any_bytes_are_a_body_or_refused(data):
    try:
        body = parse(data)
    except RequestError as error:
        refusal = error.refusal
        if (refusal.status, refusal.code) != (400, "invalid_json"):
            raise
        return
    assert set(json.loads(data)) == set(json.loads(body.replaced({"model": b"1"}))) - {"model"} | (
        {"model"} & set(json.loads(data))
    )


deltas = st.fixed_dictionaries({}, optional={"content": texts | st.none(), "reasoning": texts, "x": values})


@st.composite
def streams(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Chunks of one engine, which keeps its order of members."""
    order = draw(st.permutations(["id", "object", "model", "choices", "usage"]))
    usages = st.none() | st.just({"prompt_tokens": 3, "completion_tokens": 4})
    chunks = []
    for delta in draw(st.lists(deltas, min_size=1, max_size=5)):
        choice = {"index": 0, "delta": delta, "finish_reason": draw(st.sampled_from([None, "stop"]))}
        members: dict[str, Any] = {"id": "c", "object": "chat.completion.chunk", "model": "m", "choices": [choice]}
        members["usage"] = draw(usages)
        if draw(st.booleans()):
            del members["usage"]
        chunks.append({name: members[name] for name in order if name in members})
    return chunks


@given(
    chunks=streams(),
    sizes=st.lists(st.integers(1, 200), min_size=1, max_size=20),
    keep=st.booleans(),
    layout=layouts,
    name=st.sampled_from(["f/m", "m"]),
    routed=st.sampled_from([b"", b'"m"', b'"other"']),
)
def test_chunks_are_rewritten_the_same_however_they_arrive(chunks, sizes, keep, layout, name, routed):
    separators = layout if "\n" not in layout[0] else (",", ":")
    text = b"".join(b"data: " + json.dumps(one, separators=separators).encode() + b"\n\n" for one in chunks)
    rewriter = ChunkRewriter(json.dumps(name).encode(), keep_usage=keep, routed=routed)
    found, at, turn = b"", 0, 0
    while at < len(text):
        size = sizes[turn % len(sizes)]
        found += rewriter.feed(text[at : at + size])
        at, turn = at + size, turn + 1
    events = [json.loads(one.removeprefix(b"data: ")) for one in found.split(b"\n\n") if one]
    expected = [{**one, "model": name} for one in chunks]
    if not keep:
        expected = [{name: value for name, value in one.items() if name != "usage"} for one in expected]
    assert events == expected
    assert rewriter.content_events == len(chunks)


@given(chunks=streams())
def test_the_texts_of_a_stream_are_all_in_the_answer_made_of_it(chunks):
    aggregator = ChunkAggregator(b'"f/m"')
    for one in chunks:
        aggregator.feed(b"data: " + json.dumps(one).encode() + b"\n\n")
    found = json.loads(aggregator.answer())
    message = found["choices"][0]["message"]
    for name in ("content", "reasoning"):
        pieces = [one["choices"][0]["delta"].get(name) for one in chunks]
        expected = "".join(piece for piece in pieces if piece is not None)
        assert (message.get(name) or "") == expected
    assert found["model"] == "f/m"


documents = st.dictionaries(st.sampled_from(["choices", "model", "usage", "error", "object", "id"]), values, max_size=4)


@given(st.lists(documents | values, max_size=4))
def test_any_documents_of_an_engine_are_an_answer_or_an_error(found):
    text = b"".join(b"data: " + json.dumps(one).encode() + b"\n\n" for one in found)
    rewriters = [ChunkRewriter(b'"m"', keep_usage=False, routed=routed) for routed in (b"", b'"m"')]
    for stream in (*rewriters, ChunkAggregator(b'"m"')):
        try:
            stream.feed(text)
        except EngineStreamError:
            continue
        if isinstance(stream, ChunkAggregator):
            json.loads(stream.answer())
