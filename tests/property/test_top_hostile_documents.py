"""Whatever a router says, `top` shows printable lines of the right width, and its decoders refuse what they do not know."""

import contextlib
import json
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from router.operators.live_document import Certificate, Cluster, Flow, Live, Policy, Request, Target, Worker
from router.top.client import RouterError, decoded
from router.top.detail import explanation, fields, question
from router.top.event_stream import EventStream
from router.top.once import as_json, as_text
from router.top.ordering import Order
from router.top.printable import cells, cut, padded, printable
from router.top.spans import Line
from router.top.tables import TABLES
from router.top.view_model import ViewModel
from support.live_documents import a_router, filled, live

_NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.sampled_from(
    ["\x1b[2J", "\x9b31m", "\u202e", "模型", "a\u0301\u0301\u0301"]
)
_KEYS = st.none() | _NAMES
_NUMBERS = st.integers(-(2**53), 2**53)
_FLOATS = st.floats(allow_nan=True, allow_infinity=True)


def rows(kind: type[Any], **strategies: st.SearchStrategy[Any]) -> st.SearchStrategy[list[Any]]:
    return st.lists(st.fixed_dictionaries(strategies).map(lambda given: filled(kind, **given)), max_size=4)


_WORKERS = rows(
    Worker,
    inference_server_id=_NAMES,
    cluster_id=_NAMES,
    routing_key=_KEYS,
    state=_NAMES,
    url=_NAMES,
    models=st.lists(_NAMES, max_size=3),
    models_total=_NUMBERS,
    queue=_NUMBERS,
    output_tps=_FLOATS,
    rtt_ms=st.none() | _FLOATS,
    silent_s=st.none() | _FLOATS,
    kv_used_tokens=_NUMBERS,
    kv_capacity_tokens=_NUMBERS,
    report_age_s=st.none() | _FLOATS,
)
_REQUESTS = rows(
    Request,
    request_id=_NAMES,
    model=_NAMES,
    process=_NAMES,
    number=_NUMBERS,
    at=_FLOATS,
    end=_NAMES,
    reason=_NAMES,
    status=_NUMBERS,
    first_token_ms=st.none() | _FLOATS,
    routing_key=_KEYS,
)
_DOCUMENTS = st.builds(
    lambda **given: live(**given),
    workers=_WORKERS,
    clusters=rows(Cluster, cluster_id=_NAMES, routing_key=_KEYS, rtt_ms=st.none() | _FLOATS),
    targets=rows(Target, model=_NAMES, routing_key=_KEYS, workers=_NUMBERS),
    flows=rows(Flow, model=_NAMES, inference_server_id=_NAMES, per_second=_FLOATS),
    requests=_REQUESTS,
    certificates=rows(Certificate, name=_NAMES, days_left=_FLOATS),
    router=st.builds(
        lambda name, reasons: a_router(stargate_id=name, ready=False, not_ready=reasons), _NAMES, st.lists(_NAMES)
    ),
    policy=st.builds(
        lambda name, why: filled(Policy, digest=name, default_algorithm=name, rejected=why), _NAMES, _KEYS
    ),
)


def assert_printable(lines: list[Line]) -> None:
    for line in lines:
        for span in line:
            assert span.text == printable(span.text)
            assert not set(span.text) & set(map(chr, (*range(32), *range(0x7F, 0xA0), 0x2028, 0x202E)))


@given(st.text(), st.integers(0, 30))
def test_printable_text_stays_as_it_is_and_has_the_width_that_is_asked_for(text: str, width: int) -> None:
    shown = printable(text)
    assert printable(shown) == shown
    assert cells(cut(shown, width)) <= width
    assert cells(padded(shown, width)) == width
    assert cells(padded(shown, width, right=True)) == width


@settings(max_examples=60)
@given(_DOCUMENTS, _NAMES, st.sampled_from([40, 80, 200]), st.integers(-3, 30))
def test_any_document_is_shown_in_printable_lines(document: Live, words: str, width: int, by: int) -> None:
    model = ViewModel(document, "http://localhost:9090", 0.0)
    model.on_trouble(words)
    assert_printable(model.overview(width, 5.0))
    for table in TABLES:
        model.choose(table)
        model.filter("")
        view = model.view
        view.move(by)
        view.show_columns(by)
        for _ in table.columns:
            view.sort(view.order.next(table, 1))
            lines = view.lines(width, 10)
            assert_printable(lines)
            assert {sum(cells(span.text) for span in line) for line in lines if len(line) > 1} == {width}
        if view.chosen is not None:
            assert_printable(fields(view.chosen))
            question(table, view.chosen, document)
        model.filter(words)
        assert_printable([model.tabs(), *model.overview(width, 6.0)])
    text = as_text(document, tuple((table, Order.of(table)) for table in TABLES), "")
    assert all(printable(line) == line for line in text.split("\n"))


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | _NAMES, lambda inner: st.lists(inner) | st.dictionaries(_NAMES, inner)
    )
)
def test_any_explanation_is_shown_in_printable_lines(document: object) -> None:
    assert_printable(explanation(document))


@given(st.binary(), st.integers(1, 20))
def test_any_bytes_of_a_stream_are_events_or_nothing_however_they_are_cut(data: bytes, size: int) -> None:
    whole = EventStream().feed(data)
    stream = EventStream()
    assert [one for at in range(0, len(data), size) for one in stream.feed(data[at : at + size])] == whole


_JSON = st.recursive(st.none() | st.integers() | _NAMES, lambda inner: st.dictionaries(_NAMES, inner))


@given(st.binary() | _JSON.map(lambda document: json.dumps(document).encode()))
def test_any_document_is_decoded_or_refused(data: bytes) -> None:
    with contextlib.suppress(RouterError):
        decoded(data)


@settings(max_examples=30)
@given(_NAMES.filter(lambda name: name.isprintable()))
def test_json_for_scripts_is_ascii_and_the_same_document(name: str) -> None:
    document = live(workers=[filled(Worker, inference_server_id=name)])
    text = as_json(msgspec.json.encode(document))
    assert text.isascii()
    assert decoded(text.encode()) == document
