"""Rewrites the chunks of a streamed chat completion or completion for the client that asked for it. No I/O.

The client's model name is restored, and the usage that only the front asked for is taken out. Most chunks of a stream begin with
the same bytes (id, object, model): the first one is read, in full unless it has the routed name where it belongs, and later ones
that begin so are only searched for what must not stay. Everything else passes as the engine wrote it.
"""

import re
from collections.abc import Callable
from typing import Final

import msgspec

from router.openai import json_body
from router.openai.errors import RequestError
from router.openai.ports import Usage
from router.openai.sse import EventSplitter, data_of, with_data
from router.openai.usage_report import usage_in, usage_of
from router.openai.wire import ABSENT, NOTHING, Chunk, decode_chunk, decode_value

_DONE: Final = b"[DONE]"
_DONE_EVENT: Final = b"data: [DONE]\n\n"
_CHUNK: Final = b"data: {"
_MODEL: Final = b'"model":'
_ONLY_USAGE: Final = b',"choices":[],"usage":'
_NULL_USAGE: Final = b',"usage":null}\n\n'
_END: Final = b"\n\n"
_OBJECT_END: Final = b"}\n\n"
_FINISHES: Final = b'"finish_reason":"'
_finishes = re.compile(rb'"finish_reason"\s*:\s*"').search


class EngineStreamError(Exception):
    """The engine reported an error in its stream; `data` is that of the event, None if the stream cannot be read."""

    def __init__(self, data: bytes | None) -> None:
        super().__init__("error event")
        self.data = data
        self.before = b""
        """What the client gets of the events before it."""


class ChunkRewriter:
    """One stream. Feed it what the worker sends, and send the client what `feed` returns."""

    __slots__ = (
        "_begins",
        "_begins_for_client",
        "_keep_usage",
        "_last",
        "_model",
        "_routed",
        "_same_name",
        "_splitter",
        "content_events",
        "done",
        "usage",
    )

    def __init__(self, model: bytes, *, keep_usage: bool, routed: bytes = b"") -> None:
        """`model` is the JSON text of the client's model name; `keep_usage`: the client asked for usage.

        `routed`: the JSON text of the name that the worker was told. A first chunk that has it where it belongs is not decoded.
        """
        self._model = model
        self._keep_usage = keep_usage
        self._routed = routed
        self._splitter = EventSplitter()
        self._begins = b""
        """The bytes from the beginning of a chunk to the end of its model; empty until they are known."""
        self._begins_for_client = b""
        self._same_name = False
        self.usage: Usage | None = None
        """The last usage that the engine reported."""
        self.content_events = 0
        """Number of chunks with a choice that were passed on."""
        self._last = b""
        """The end of the last chunk with a choice."""
        self.done = False
        """Whether the engine has sent `[DONE]`."""

    @property
    def complete(self) -> bool:
        """Whether the stream may end now without being cut: some engines send no `[DONE]`."""
        return (self.done or _FINISHES in self._last) and not self._splitter.pending.strip()

    def feed(self, data: bytes) -> bytes:
        """What the client gets for `data`. Raises `EngineStreamError`, and `EventTooLongError`."""
        begins = self._begins
        if begins and data.startswith(begins) and data.endswith(_END) and self._splitter.idle:
            # Nearly always: one event arrives at a time, and begins as the one before.
            if data.find(b"\n", len(begins)) == len(data) - 2:
                return self._continued(data)
        elif self._splitter.idle and 0 < data.find(b"\n\n") == len(data) - 2:
            return self._rewrite(data)
        events = self._splitter.feed(data)
        if len(events) == 1:
            return self._rewrite(events[0])
        return joined(events, self._rewrite)

    def _rewrite(self, event: bytes) -> bytes:
        begins = self._begins
        if begins and event.startswith(begins):
            if event.find(b"\n", len(begins)) == len(event) - 2:
                return self._continued(event)
        elif self._routed and self._is_plain(event):
            return self._known(event)
        return self._read(event)

    def _continued(self, event: bytes) -> bytes:
        """A chunk that begins as what is remembered, and has one line."""
        if not event.endswith(_NULL_USAGE):
            begins = len(self._begins)
            if event.find(b'"usage"', begins) >= 0:
                # What JSON calls `"usage"` inside a text is `\"usage\"`; it may still be no member of the chunk itself.
                return b"" if self._is_usage_only(event, begins) else self._read(event)
        return self._known(event)

    def _known(self, event: bytes) -> bytes:
        """A chunk with a choice that begins as what is remembered, and has no usage, or a null at its end."""
        if not self._keep_usage and event.endswith(_NULL_USAGE):
            event = event[: -len(_NULL_USAGE)] + _OBJECT_END
        self.content_events += 1
        self._last = event
        return event if self._same_name else self._begins_for_client + event[len(self._begins) :]

    def _is_plain(self, event: bytes) -> bool:
        """Whether this is the first chunk, with a choice, under the name that was asked for, without error or usage."""
        routed, self._routed = self._routed, b""
        if b'"choices":[{' not in event or b'"error"' in event or not event.endswith(_OBJECT_END):
            return False
        if b'"usage"' in event and not (event.endswith(_NULL_USAGE) and event.count(b'"usage"') == 1):
            return False
        return self._learn(event, routed)

    def _is_usage_only(self, event: bytes, begins: int) -> bool:
        """Whether the chunk has usage that the client did not ask for, and nothing else after its model; the usage is kept."""
        if self._keep_usage or not (event.startswith(_ONLY_USAGE, begins) and event.endswith(_OBJECT_END)):
            return False
        try:
            reported = usage_in(decode_value(event[begins + len(_ONLY_USAGE) : -len(_OBJECT_END)]))
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return False
        if reported is None:
            return False
        self.usage = reported
        return True

    def _read(self, event: bytes) -> bytes:
        """Rewrite an event, whatever it is."""
        if event == _DONE_EVENT:
            self.done = True
            return event
        data = data_of(event)
        if data is None:
            return event  # a comment
        if data.strip() == _DONE:
            self.done = True
            return event
        try:
            chunk = decode_chunk(data)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            raise EngineStreamError(None) from None
        if chunk.error not in NOTHING:
            raise EngineStreamError(data)
        reported = None if chunk.usage in NOTHING else usage_of(chunk.usage)
        if reported is not None:
            self.usage = reported
        if chunk.choices:
            finishes = _FINISHES if _finishes(data) else b""
            # A null at the end is that of the chunk itself.
            if (chunk.usage is ABSENT or event.endswith(_NULL_USAGE)) and self._learn(event, bytes(chunk.model)):
                written = self._known(event)
                self._last = finishes
                return written
            self.content_events += 1
            self._last = finishes
        elif reported is not None and not self._keep_usage:
            return b""
        try:
            return self._written(event, data, chunk)
        except RequestError:
            raise EngineStreamError(None) from None  # what a client could not read either

    def _written(self, event: bytes, data: bytes, chunk: Chunk) -> bytes:
        """The chunk for the client. Raises `RequestError`."""
        written = data
        if chunk.model != ABSENT and bytes(chunk.model) != self._model:
            written = json_body.parse_answer(data).replaced({"model": self._model})
        if chunk.usage != ABSENT and not self._keep_usage:
            written = json_body.parse_answer(written).without("usage")
        return event if written is data else with_data(event, written)

    def _learn(self, event: bytes, name: bytes) -> bool:
        """Remember how this chunk begins, if its model comes before its choices and only once. `name`: the JSON of the model."""
        key = event.find(_MODEL)
        begin = key + len(_MODEL)
        if event.startswith(b" ", begin):
            begin += 1
        end = begin + len(name)
        if key < 0 or not name or not event.startswith(name, begin) or not event.startswith(_CHUNK):
            return False
        begins, rest = event[:end], event[end:]
        if b'"choices"' not in rest or b'"model"' in rest or rest.find(b"\n") != len(rest) - 2 or b"\n" in begins:
            return False
        if b'"usage"' in begins or b'"finish_reason"' in begins:
            return False
        self._begins = begins
        self._same_name = name == self._model
        self._begins_for_client = event[:begin] + self._model
        return True


def joined(events: list[bytes], rewrite: Callable[[bytes], bytes]) -> bytes:
    """The rewritten events. Raises `EngineStreamError` with those before the one that raised it."""
    found: list[bytes] = []
    try:
        for event in events:
            found.append(rewrite(event))  # noqa: PERF401 - what was rewritten before an error is needed
    except EngineStreamError as error:
        error.before = b"".join(found)
        raise
    return b"".join(found)
