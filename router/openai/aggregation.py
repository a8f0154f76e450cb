"""Makes the answer without streaming of a chat completion or completion out of the chunks of its stream, without loss. No I/O.

Deltas are merged by one rule: texts are joined, lists are appended, objects are merged; what names something (ids, roles, types)
keeps its first value that is not empty, and of everything else the last value that is not null counts. Tool calls, and whatever
else has an `index`, are merged by it.
"""

from typing import Any, Final

import msgspec

from router.openai.chunk_rewriter import EngineStreamError
from router.openai.ports import Usage
from router.openai.sse import EventSplitter, data_of
from router.openai.usage_report import usage_in
from tunnel_protocol.limit import Limit

ANSWER: Final = Limit("openai.whole_answer", bytes=64 * 1024 * 1024)
"""Bytes of an answer that is collected before the client gets it: of its stream, or of a body that is not streamed."""

_MAX_ANSWER: Final = ANSWER.bytes or 0
_DONE: Final = b"[DONE]"
_NAMES: Final = frozenset(("id", "role", "type", "object", "name", "model", "index", "created", "format"))
"""Members whose value is one text, which chunks may repeat."""

_OF_CHUNK: Final = frozenset(("choices", "usage", "object", "model"))
_OF_CHOICE: Final = frozenset(("delta", "index", "finish_reason", "text"))
_OBJECTS: Final = {"chat.completion.chunk": "chat.completion"}


class AnswerTooLargeError(Exception):
    """The answer is larger than `ANSWER`."""


class _Text:
    """A text that arrives in pieces: to add one costs the same however long it is."""

    __slots__ = ("pieces",)

    def __init__(self, *pieces: str) -> None:
        self.pieces = list(pieces)


def _whole(value: object) -> str:
    if isinstance(value, _Text):
        return "".join(value.pieces)
    raise TypeError


class ChunkAggregator:
    """One stream. Feed it what the worker sends; `answer` is the whole."""

    __slots__ = ("_choices", "_members", "_model", "_size", "_splitter", "_usage", "content_events", "done", "finished")

    def __init__(self, model: bytes) -> None:
        """`model` is the JSON text of the client's model name."""
        self._model = model
        self._splitter = EventSplitter()
        self._members: dict[str, Any] = {}
        self._choices: dict[int, dict[str, Any]] = {}
        self._usage: dict[str, Any] | None = None
        self._size = 0
        self.content_events = 0
        self.finished = False
        self.done = False

    @property
    def usage(self) -> Usage | None:
        """The last usage that the engine reported."""
        return usage_in(self._usage)

    @property
    def complete(self) -> bool:
        """Whether the stream may end now without being cut."""
        return (self.done or self.finished) and bool(self._choices)

    def feed(self, data: bytes) -> bytes:
        """Take a piece of the stream; the client gets nothing of it yet. Raises `EngineStreamError`, `EventTooLongError` and `AnswerTooLargeError`."""
        self._size += len(data)
        if self._size > _MAX_ANSWER:
            raise AnswerTooLargeError
        for event in self._splitter.feed(data):
            found = data_of(event)
            if found is None:
                continue
            if found.strip() == _DONE:
                self.done = True
                continue
            try:
                chunk = msgspec.json.decode(found)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                raise EngineStreamError(None) from None
            if not isinstance(chunk, dict):
                raise EngineStreamError(None)
            if chunk.get("error") is not None:
                raise EngineStreamError(found)
            self._add(chunk)
        return b""

    def answer(self) -> bytes:
        """The answer; to be called once."""
        choices = [self._choices[index] for index in sorted(self._choices)]
        for choice in choices:
            message = choice.get("message")
            if message is not None:
                _finish_message(message)
            choice.setdefault("finish_reason", None)
        members = self._members
        answer: dict[str, Any] = {}
        for name in ("id", "object", "created"):
            if name in members:
                answer[name] = members.pop(name)
        answer["model"] = msgspec.Raw(self._model)
        answer["choices"] = choices
        answer.update(members)
        if self._usage is not None:
            answer["usage"] = self._usage
        return msgspec.json.encode(answer, enc_hook=_whole)

    def _add(self, chunk: dict[str, Any]) -> None:
        for name, value in chunk.items():
            if name not in _OF_CHUNK:
                _merge_member(self._members, name, value)
        kind = chunk.get("object")
        if isinstance(kind, str):
            self._members["object"] = _OBJECTS.get(kind, kind)
        if isinstance(chunk.get("usage"), dict):
            self._usage = chunk["usage"]
        choices = chunk.get("choices")
        if isinstance(choices, list) and choices:
            self.content_events += 1
            for choice in choices:
                if isinstance(choice, dict):
                    self._add_choice(choice)

    def _add_choice(self, given: dict[str, Any]) -> None:
        index = given.get("index")
        index = index if isinstance(index, int) else 0
        choice = self._choices.get(index)
        if choice is None:
            choice = self._choices[index] = {"index": index}
        delta = given.get("delta")
        if isinstance(delta, dict):
            _merge(choice.setdefault("message", {"role": "assistant", "content": None}), delta)
        text = given.get("text")
        if isinstance(text, str):
            _merge_member(choice, "text", text)
        if given.get("finish_reason") is not None:
            choice["finish_reason"] = given["finish_reason"]
            self.finished = True
        for name, value in given.items():
            if name not in _OF_CHOICE:
                if isinstance(value, str):
                    choice[name] = value  # a reason, such as `stop_reason`, and no part of a text
                else:
                    _merge_member(choice, name, value)


def _finish_message(message: dict[str, Any]) -> None:
    """What a streamed message has and a whole one has not."""
    calls = message.get("tool_calls")
    if isinstance(calls, list):
        if message.get("content") == "":
            message["content"] = None
        for call in calls:
            if isinstance(call, dict):
                call.pop("index", None)


def _merge(into: dict[str, Any], given: dict[str, Any]) -> None:
    for name, value in given.items():
        _merge_member(into, name, value)


def _merge_member(into: dict[str, Any], name: str, value: Any) -> None:
    before = into.get(name)
    if before is None:
        # Indexed parts are merged into a list of their own, for they may come out of order.
        into[name] = _merged_list([], value) if isinstance(value, list) else value
    elif value is None:
        return
    elif isinstance(before, str) and isinstance(value, str):
        into[name] = (before or value) if name in _NAMES else _Text(before, value)
    elif isinstance(before, _Text) and isinstance(value, str):
        before.pieces.append(value)
    elif isinstance(before, dict) and isinstance(value, dict):
        _merge(before, value)
    elif isinstance(before, list) and isinstance(value, list):
        into[name] = _merged_list(before, value)
    elif name not in _NAMES:
        into[name] = value


def _merged_list(before: list[Any], given: list[Any]) -> list[Any]:
    for part in given:
        index = part.get("index") if isinstance(part, dict) else None
        same = None
        if isinstance(index, int):
            same = next((one for one in before if isinstance(one, dict) and one.get("index") == index), None)
        if same is None:
            before.append(part)
        else:
            _merge(same, part)
    return before
