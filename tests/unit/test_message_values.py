"""What crosses a tunnel, and what algorithms return: alike if it holds the same, and readable in a failed assertion."""

from typing import Any

import pytest

from router.balancing.outcome import Choice
from tunnel_protocol.capnp import Body, Headers, Trailers
from tunnel_protocol.head import RequestHead, ResponseHead

ENTRIES = [(b"a", b"1")]
VALUES = [
    (RequestHead(b"GET", b"/", ENTRIES), RequestHead(b"GET", b"/", []), "RequestHead(b'GET', b'/', [(b'a', b'1')])"),
    (ResponseHead(200, ENTRIES), ResponseHead(201, ENTRIES), "ResponseHead(200, [(b'a', b'1')])"),
    (Headers(ENTRIES), Headers([]), "Headers([(b'a', b'1')])"),
    (Trailers(ENTRIES), Trailers([]), "Trailers([(b'a', b'1')])"),
    (Body(b"x"), Body(b"y"), "Body(b'x')"),
]


@pytest.mark.parametrize(("value", "other", "text"), VALUES)
def test_messages_are_compared_by_what_they_hold(value: Any, other: Any, text: str) -> None:
    assert value == value
    assert value != other
    assert value != text
    assert repr(value) == text


def test_a_choice_is_compared_by_what_it_holds() -> None:
    candidate: Any = object()
    assert Choice(candidate) == Choice(candidate, 1, False)
    assert Choice(candidate) != Choice(candidate, 2)
    assert Choice(candidate) != candidate
