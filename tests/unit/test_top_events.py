"""Server-sent events as `top` reads them."""

import pytest

from router.top import event_stream
from router.top.event_stream import Event, EventStream, EventTooLargeError


def test_events_come_in_any_chunks() -> None:
    text = b"retry: 1000\n\nevent: full\ndata: {1}\n\n: comment\ndata: a\r\ndata:b\r\n\r\nevent: update\ndata: 2"
    for size in (1, 3, 1000):
        stream = EventStream()
        found = [one for at in range(0, len(text), size) for one in stream.feed(text[at : at + size])]
        assert found == [Event("full", b"{1}"), Event("message", b"a\nb")]
        assert stream.feed(b"\n\n") == [Event("update", b"2")]


def test_an_event_without_data_is_none_and_its_name_is_forgotten() -> None:
    assert EventStream().feed(b"event: full\n\ndata: x\n\n") == [Event("message", b"x")]


def test_a_document_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_stream, "_MAX_BYTES", 100)
    stream = EventStream()
    for _ in range(10):
        stream.feed(b": this is a comment, which is not held\n")
    stream.feed(b"data: " + b"x" * 60 + b"\n")
    with pytest.raises(EventTooLargeError, match="more than 100 bytes"):
        stream.feed(b"data: " + b"x" * 60)
    with pytest.raises(EventTooLargeError):
        EventStream().feed(b"x" * 101)
