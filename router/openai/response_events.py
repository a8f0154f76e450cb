"""The streams of the Responses API: the client's model name is restored in each event, and without streaming the last one counts.

An event with a whole `response` in it (`response.created` and the last one) has the model there; others have none.
"""

from typing import Final

from router.openai import json_body
from router.openai.aggregation import ANSWER, AnswerTooLargeError
from router.openai.chunk_rewriter import EngineStreamError, joined
from router.openai.errors import RequestError
from router.openai.ports import Usage
from router.openai.sse import EventSplitter, data_of, with_data
from router.openai.usage_report import usage_of

_MAX_ANSWER = ANSWER.bytes or 0
_LAST: Final = frozenset((b'"response.completed"', b'"response.failed"', b'"response.incomplete"'))
_DONE: Final = b"[DONE]"


class ResponseEvents:
    """One stream. Both uses of it feed it what the worker sends; only one of them collects."""

    __slots__ = ("_collect", "_model", "_size", "_splitter", "answer", "content_events", "sequence_number", "usage")

    def __init__(self, model: bytes, *, collect: bool) -> None:
        """`model` is the JSON text of the client's model name; `collect`: the client gets `answer`, and no events."""
        self._model = model
        self._collect = collect
        self._splitter = EventSplitter()
        self._size = 0
        self.answer: bytes | None = None
        """The response of the last event; None before it."""
        self.usage: Usage | None = None
        self.content_events = 0
        self.sequence_number = 0
        """Number of events that were passed on."""

    @property
    def complete(self) -> bool:
        """Whether the last event has come."""
        return self.answer is not None

    def feed(self, data: bytes) -> bytes:
        """What the client gets for `data`. Raises `EngineStreamError`, `EventTooLongError` and `AnswerTooLargeError`."""
        if self._collect:
            self._size += len(data)
            if self._size > _MAX_ANSWER:
                raise AnswerTooLargeError
        return joined(self._splitter.feed(data), self._rewrite)

    def _rewrite(self, event: bytes) -> bytes:
        if b'"response"' not in event and b'"error"' not in event:
            self.sequence_number += 1
            if b".delta" in event:
                self.content_events += 1
            return event
        data = data_of(event)
        if data is None or data.strip() == _DONE:
            return event
        self.sequence_number += 1
        try:
            found = json_body.parse_answer(data)
            response = found.members.get("response")
            if response is None:
                if not found.is_null("error"):
                    raise EngineStreamError(data)
                kind = found.members.get("type")
                if kind is not None and bytes(kind) == b'"error"':
                    self.answer = b""  # the error event of the API itself, which ends the stream
                return event
            inner = json_body.parse_answer(bytes(response))
            rewritten = inner.replaced({"model": self._model}) if "model" in inner.members else inner.raw
            passed_on = with_data(event, found.replaced({"response": rewritten}))
        except RequestError:
            raise EngineStreamError(None) from None
        self.usage = usage_of(inner.members.get("usage")) or self.usage
        kind = found.members.get("type")
        if kind is not None and bytes(kind) in _LAST:
            self.answer = rewritten
        return passed_on
