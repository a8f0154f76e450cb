"""Answers of the Kubernetes API to list and watch, decoded. Sans-I/O.

Source: Kubernetes API concepts, "Efficient detection of changes", "Watch bookmarks" and "410 Gone responses".
"""

from collections.abc import Iterator
from enum import Enum

import msgspec

from kubernetes_router.slices import EndpointSlice
from tunnel_protocol.limit import Limit

EVENT = Limit("kubernetes_router.event", bytes=4 << 20)
"""One event of a watch; etcd stores objects of at most 1.5 MiB."""

_MAX_EVENT_BYTES = EVENT.bytes or 0


class Change(Enum):
    """Types of events that change or mark the state; others are ignored."""

    ADDED = "ADDED"
    MODIFIED = "MODIFIED"
    DELETED = "DELETED"
    BOOKMARK = "BOOKMARK"


class InvalidAnswerError(Exception):
    """An answer is not what the API is documented to send."""


class ReportedError(Exception):
    """The API reports an error inside of a watch; `code` is an HTTP status."""

    def __init__(self, code: int) -> None:
        super().__init__(f"status {code}")
        self.code = code


class SliceEvent:
    """One event: the slice, None for a bookmark, and the version of the list after it (empty: unknown)."""

    __slots__ = ("change", "resource_version", "slice")

    def __init__(self, change: Change, resource_version: str, found: EndpointSlice | None) -> None:
        self.change = change
        self.resource_version = resource_version
        self.slice = found


class ListMetadata(msgspec.Struct, rename="camel"):
    """Version of a list, and where its next page begins (empty: this was the last one)."""

    resource_version: str = ""
    continue_: str | None = msgspec.field(default=None, name="continue")


class SlicePage(msgspec.Struct):
    """One page of a list."""

    metadata: ListMetadata
    items: list[EndpointSlice] | None = None


class _Event(msgspec.Struct):
    type: str
    object: msgspec.Raw


class _Marked(msgspec.Struct):
    metadata: ListMetadata


class _Status(msgspec.Struct):
    code: int = 500


_UNDECODABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What the decoder raises for invalid JSON, for strings that are no UTF-8, and for documents that are nested too deeply."""

_EVENT_DECODER = msgspec.json.Decoder(_Event)
_SLICE_DECODER = msgspec.json.Decoder(EndpointSlice)
_PAGE_DECODER = msgspec.json.Decoder(SlicePage)
_MARK_DECODER = msgspec.json.Decoder(_Marked)
_STATUS_DECODER = msgspec.json.Decoder(_Status)


def decode_page(document: bytes) -> SlicePage:
    """One page of a list. Raises `InvalidAnswerError`."""
    try:
        return _PAGE_DECODER.decode(document)
    except _UNDECODABLE as error:
        raise InvalidAnswerError(str(error)) from None


def decode_event(line: bytes) -> SliceEvent | None:
    """One line of a watch; None for an event of an unknown type. Raises `InvalidAnswerError` and `ReportedError`."""
    try:
        event = _EVENT_DECODER.decode(line)
        if event.type == "ERROR":
            raise ReportedError(_STATUS_DECODER.decode(event.object).code)
        if event.type == Change.BOOKMARK.value:
            return SliceEvent(Change.BOOKMARK, _MARK_DECODER.decode(event.object).metadata.resource_version, None)
        if event.type not in Change.__members__:
            return None
        found = _SLICE_DECODER.decode(event.object)
    except _UNDECODABLE as error:
        raise InvalidAnswerError(str(error)) from None
    return SliceEvent(Change[event.type], found.metadata.resource_version, found)


class Lines:
    """Splits a stream of bytes into lines."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The lines that are complete with `data`, without empty ones. Raises `InvalidAnswerError` for one that is too long."""
        self._rest += data
        while (end := self._rest.find(b"\n")) >= 0:
            line = bytes(self._rest[:end])
            del self._rest[: end + 1]
            if line.strip():
                yield line
        if len(self._rest) > _MAX_EVENT_BYTES:
            raise InvalidAnswerError(f"an event of more than {_MAX_EVENT_BYTES} bytes")
