"""Pages of the operators' port: what answers a path, and with what."""

from collections.abc import Awaitable, Callable
from typing import Final, NamedTuple
from urllib.parse import parse_qsl

import msgspec

from router.http1.request import ClientRequest
from router.http1.response import Response, ResponseFlow
from tunnel_protocol.head import HeaderList

JSON: Final = (b"content-type", b"application/json")
TEXT: Final = (b"content-type", b"text/plain; charset=utf-8")
NOT_STORED: Final = (b"cache-control", b"no-store")


class Reply(NamedTuple):
    """A complete answer."""

    status: int
    headers: HeaderList
    body: bytes = b""


class Page(NamedTuple):
    """What answers one path."""

    answer: Callable[[ClientRequest], Awaitable[Reply]]
    methods: tuple[bytes, ...] = (b"GET", b"HEAD")
    guarded: bool = False
    """Whether the access rule applies (`access.py`)."""
    login: Callable[[], Reply] | None = None
    """What someone without access, who could have it, gets in place of an error."""


class StreamPage(NamedTuple):
    """What answers one path with a stream; it is guarded, and GET is its only method."""

    begin: Callable[[ClientRequest, Response], Awaitable[ResponseFlow | None]]
    """Begins the response, or sends it whole and returns None."""
    methods: tuple[bytes, ...] = (b"GET",)
    guarded: bool = True


def document(value: object, status: int = 200) -> Reply:
    """`value` as JSON."""
    return Reply(status, [JSON, NOT_STORED], msgspec.json.encode(value))


def refusal(status: int, error: str) -> Reply:
    """An error in words, as JSON."""
    return document({"error": error}, status)


def line(status: int, text: str) -> Reply:
    """One line of text."""
    return Reply(status, [TEXT, NOT_STORED], f"{text}\n".encode())


def query_of(request: ClientRequest) -> list[tuple[str, str]]:
    """The query parameters, in order; what is no UTF-8 is replaced."""
    return parse_qsl(request.target.partition(b"?")[2].decode("latin-1"), keep_blank_values=True)
