"""Bytes that `stargate-k8s-router` reads and writes itself: frames, statuses, events of the Kubernetes API."""

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kubernetes_router.grpc_messages import GrpcStatus, framed, host_of, trailers
from kubernetes_router.http2.frames import GoAwayFilter
from kubernetes_router.slice_events import (
    EVENT,
    Change,
    InvalidAnswerError,
    Lines,
    ReportedError,
    decode_event,
    decode_page,
)
from support.kubernetes_objects import endpoint, endpoint_slice


def frame(kind: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, 0]) + bytes(4) + payload


_FRAMES = st.lists(st.tuples(st.sampled_from([0, 1, 4, 6, 7, 7, 9, 255]), st.binary(max_size=40)), max_size=12)


def cut(data: bytes, cuts: list[int]) -> list[bytes]:
    at = sorted(min(one, len(data)) for one in cuts)
    return [data[start:end] for start, end in zip([0, *at], [*at, len(data)], strict=True)]


@given(_FRAMES, st.lists(st.integers(0, 600), max_size=20), st.booleans())
def test_the_filter_takes_out_goaway_frames_and_nothing_else(
    frames: list[tuple[int, bytes]], cuts: list[int], preface: bool
) -> None:
    start = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" if preface else b""
    data = start + b"".join(frame(kind, payload) for kind, payload in frames)
    wanted = start + b"".join(frame(kind, payload) for kind, payload in frames if kind != 7 or len(payload) < 8)
    found = GoAwayFilter(preface=preface)
    assert b"".join(found.feed(part) for part in cut(data, cuts)) == wanted
    codes = [int.from_bytes(payload[4:8], "big") for kind, payload in frames if kind == 7 and len(payload) >= 8]
    assert found.error_code == (codes[-1] if codes else None)


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("router is shutting down", b"router is shutting down"),
        ("100 % caf\u00e9\n", b"100 %25 caf%C3%A9%0A"),
        ("a/b?c=d&e~f", b"a/b?c=d&e~f"),
    ],
)
def test_status_messages_are_percent_encoded(text: str, written: bytes) -> None:
    assert trailers(GrpcStatus.UNAVAILABLE, text) == [(b"grpc-status", b"14"), (b"grpc-message", written)]


def test_messages_have_a_prefix() -> None:
    assert framed(b"abc") == b"\0\0\0\0\3abc"


@pytest.mark.parametrize(
    ("authority", "host"),
    [
        ("router-0.svc:50071", "router-0.svc"),
        ("router-0.svc", "router-0.svc"),
        ("[fd00::1]:50071", "fd00::1"),
        ("[fd00::1]", "fd00::1"),
        (":50071", ""),
        ("host:", "host:"),
        ("host:name", "host:name"),
    ],
)
def test_the_host_of_an_authority_is_without_port(authority: str, host: str) -> None:
    assert host_of(authority) == host


# --- Events of the Kubernetes API -------------------------------------------------------------------------------------

SLICE = endpoint_slice("a", endpoint("router-0", "10.0.0.1"))
SLICE["metadata"]["resourceVersion"] = "7"


@pytest.mark.parametrize("change", ["ADDED", "MODIFIED", "DELETED"])
def test_an_event_has_a_slice_and_a_version(change: str) -> None:
    event = decode_event(json.dumps({"type": change, "object": SLICE}).encode())
    assert event is not None
    assert (event.change, event.resource_version) == (Change[change], "7")
    assert event.slice is not None
    assert event.slice.metadata.name == "a"


def test_a_bookmark_has_only_a_version() -> None:
    event = decode_event(b'{"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "9"}}}')
    assert event is not None
    assert (event.change, event.resource_version, event.slice) == (Change.BOOKMARK, "9", None)


def test_an_error_has_a_code() -> None:
    with pytest.raises(ReportedError) as caught:
        decode_event(b'{"type": "ERROR", "object": {"code": 410}}')
    assert caught.value.code == 410


@given(
    st.lists(st.binary(max_size=20).filter(lambda line: b"\n" not in line and line.strip()), max_size=8),
    st.lists(st.integers(0, 200), max_size=8),
)
def test_lines_are_the_same_however_they_arrive(lines: list[bytes], cuts: list[int]) -> None:
    data = b"".join(line + b"\n" for line in lines)
    splitter = Lines()
    assert [line for part in cut(data, cuts) for line in splitter.feed(part)] == lines


def test_a_line_is_bounded() -> None:
    splitter = Lines()
    assert list(splitter.feed(b" " * (EVENT.bytes or 0))) == []
    with pytest.raises(InvalidAnswerError):
        list(splitter.feed(b" "))


@pytest.mark.parametrize(
    "value",
    [b'"\xff"', b"[" * 100_000 + b"]" * 100_000, b'"\\ud800"', b"1" * 10_000],
    ids=["utf-8", "deep", "surrogate", "long"],
)
def test_values_that_no_decoder_takes_are_refused(value: bytes) -> None:
    for decode, document in (
        (decode_page, b'{"metadata": {"resourceVersion": %b}, "items": []}'),
        (decode_page, b'{"metadata": {}, "unknown": %b, "items": 1}'),
        (decode_event, b'{"type": %b, "object": {}}'),
        (decode_event, b'{"type": "BOOKMARK", "object": {"metadata": %b}}'),
        (decode_event, b'{"type": "ERROR", "object": {"code": %b}}'),
    ):
        with pytest.raises(InvalidAnswerError):
            decode(document % value)


@given(st.data())
def test_changed_answers_are_read_or_refused(data: Any) -> None:
    page = {"metadata": {"resourceVersion": "7", "continue": ""}, "items": [SLICE]}
    for decode, document in ((decode_page, page), (decode_event, {"type": "ADDED", "object": SLICE})):
        content = bytearray(json.dumps(document).encode())
        for _ in range(data.draw(st.integers(0, 4))):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.sampled_from(b'"{}[]:,0nt \\\x00\xff'))
        with suppress(InvalidAnswerError, ReportedError):
            decode(bytes(content))
