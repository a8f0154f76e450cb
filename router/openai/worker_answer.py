"""Makes the client's answer of what routing and relay write: a worker's answer, or a local reply of the router.

A stream is passed on chunk by chunk, or collected for a client that asked for none. Errors become the one envelope of the front;
those that an engine sends in that form stay as they are. After the head an error is an event, never a silent end.
"""

import re
from collections.abc import Callable
from enum import Enum
from typing import Final

import msgspec

from router.http1.response import Response, ResponseWriter
from router.openai import engine_errors, errors, json_body
from router.openai.aggregation import ANSWER, AnswerTooLargeError, ChunkAggregator
from router.openai.caller_request import WorkerRequest
from router.openai.chunk_rewriter import ChunkRewriter, EngineStreamError
from router.openai.endpoints import Endpoint, Kind
from router.openai.errors import RequestError
from router.openai.ports import End, Refusal, Usage
from router.openai.response_events import ResponseEvents
from router.openai.sse import EventTooLongError
from router.openai.usage_report import usage_of
from tunnel_protocol.head import ERROR_CODE, HeaderList

_MAX_ANSWER = ANSWER.bytes or 0
_JSON: Final = (b"content-type", b"application/json")
_STREAM_HEADERS: Final = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
)
_PASSED_ON: Final = frozenset(
    (b"retry-after", b"retry-after-ms", b"x-should-retry", b"openai-processing-ms", b"openai-version", ERROR_CODE)
)
"""Fields of a worker's answer that the client gets."""
_USED: Final = _PASSED_ON | {b"content-type", b"content-encoding"}
_EVENTS: Final = b"text/event-stream"
KEEPALIVE: Final = b": keep-alive\n\n"

_plain = re.compile(r"[A-Za-z0-9._:@+/-]+").fullmatch

_CUT: Final = errors.upstream_error("The worker's answer was cut. What you have received is not complete.")
_TOO_LARGE: Final = errors.upstream_error(
    "The answer is too large to be sent in one piece. Ask for a stream, or for fewer output tokens."
)
_UNREADABLE: Final = errors.upstream_error("The engine sent something that is no event of an OpenAI stream.")
_NO_STREAM: Final = errors.upstream_error("The engine answered without a stream although one was asked for.")
_COMPRESSED: Final = errors.upstream_error("The engine answered in a compressed form that was not asked for.")


class Asked:
    """What the answer depends on."""

    __slots__ = (
        "endpoint",
        "headers",
        "keep_usage",
        "model",
        "name",
        "now",
        "render",
        "routed",
        "stream",
    )

    def __init__(
        self,
        *,
        endpoint: Endpoint,
        name: str,
        model: bytes,
        routed: str,
        stream: bool,
        keep_usage: bool,
        headers: HeaderList,
        render: Callable[[Refusal], bytes],
        now: Callable[[], float],
    ) -> None:
        self.endpoint = endpoint
        self.name = name
        """The model as the client wrote it."""
        self.model = model
        """The JSON text of that."""
        self.routed = routed
        """The model as the worker was told."""
        self.stream = stream
        """Whether the client asked for a stream."""
        self.keep_usage = keep_usage
        """Whether it asked for usage in the stream."""
        self.headers = headers
        """Fields that every answer has."""
        self.render = render
        """Makes the body of an error."""
        self.now = now
        """Monotonic seconds."""


class Mode(Enum):
    """What is done with the body of a worker's answer."""

    NONE = "none"
    STREAM = "stream"
    COLLECT = "collect"
    WHOLE = "whole"
    ERROR = "error"


# Bound once: looking a member up in its enum takes long (Python 3.11).
_STREAM: Final = Mode.STREAM
_NONE: Final = Mode.NONE
_RESPONSE: Final = Kind.RESPONSE
_COMPLETE: Final = End.COMPLETE


class WorkerAnswer(ResponseWriter):
    """The answer of one request."""

    __slots__ = (
        "_asked",
        "_events",
        "_fields",
        "_mode",
        "_now",
        "_owner",
        "_pieces",
        "_response",
        "_size",
        "_usage",
        "first_at",
        "sent_at",
    )

    def __init__(self, owner: WorkerRequest, response: Response, asked: Asked) -> None:
        super().__init__()
        self._owner = owner
        self._response = response
        self._asked = asked
        self._now = asked.now
        self.sent_at = 0.0
        """When the worker sent the last piece of its answer; 0 before the first."""
        self.first_at = 0.0
        """The same of the first one."""
        self._mode = _NONE
        self._events: ChunkRewriter | ChunkAggregator | ResponseEvents | None = None
        self._pieces: list[bytes] = []
        self._size = 0
        self._fields: HeaderList = []
        self._usage: Usage | None = None

    @property
    def streaming(self) -> bool:
        """Whether events are being passed on to the client."""
        return self._mode is _STREAM and not self.over

    @property
    def usage(self) -> Usage | None:
        """What the engine has reported so far."""
        return self._usage if self._events is None else self._events.usage

    @property
    def content_events(self) -> int:
        """Number of events with content so far."""
        return 0 if self._events is None else self._events.content_events

    # --- ResponseWriter --------------------------------------------------------------------------------------------

    def start(self, status: int, headers: HeaderList) -> None:
        """See `ResponseWriter.start`: the head of a worker's answer."""
        if self.over:
            return
        self.started = True
        self.status = status
        kind, encoding = b"", b"identity"
        for field in headers:
            name = field[0]
            if name not in _USED:
                continue
            if name == b"content-type":
                kind = field[1]
            elif name == b"content-encoding":
                encoding = field[1]
            else:
                self._fields.append(field)
        if encoding != b"identity":
            self._give_up(_COMPRESSED)
        elif not 200 <= status < 300:
            self._mode = Mode.ERROR
        elif not kind.startswith(_EVENTS) and not kind.lower().startswith(_EVENTS):
            if self._asked.stream:
                self._give_up(_NO_STREAM)
            else:
                self._mode = Mode.WHOLE
        elif self._asked.stream:
            self._mode = _STREAM
            self._events = self._stream()
            self._response.start(200, [*self._asked.headers, *self._fields, *_STREAM_HEADERS])
        else:
            self._mode = Mode.COLLECT
            self._events = self._collector()
        if not self.over:
            self._owner.worker_answered(status)

    def write(self, data: bytes) -> bool:
        """See `ResponseWriter.write`."""
        if self.over:
            return True
        self.sent_at = self._now()
        if not self.body_bytes:
            self.first_at = self.sent_at
        self.body_bytes += len(data)
        try:
            events = self._events
            if events is None:
                self._keep(data)
                return True
            passed_on = events.feed(data)
            if passed_on and self._mode is _STREAM:
                self._response.write(passed_on)
        except EngineStreamError as error:
            self._engine_error(error)
        except EventTooLongError:
            self._give_up(_UNREADABLE)
        except AnswerTooLargeError:
            self._give_up(_TOO_LARGE)
        return True

    def end(self) -> None:
        """See `ResponseWriter.end`."""
        if self.over:
            return
        events = self._events
        if events is not None and not events.complete:
            self.fail(_CUT, End.CUT)
            return
        if self._mode is _STREAM:
            self.over = True
            self._owner.answered(_COMPLETE, 200, None)
            self._response.end()
        elif isinstance(events, ChunkAggregator):
            self._send(200, events.answer())
        elif isinstance(events, ResponseEvents):
            self._send(200, events.answer or b"null")
        elif self._mode is Mode.WHOLE:
            self._whole()
        else:
            self._error_answer()

    def break_off(self) -> None:
        """See `ResponseWriter.break_off`: the worker's answer is cut."""
        self.fail(_CUT, End.CUT)

    def send(self, status: int, headers: HeaderList, body: bytes = b"") -> None:  # noqa: ARG002 - the front has bodies of its own
        """See `ResponseWriter.send`: a local reply of the router."""
        if not self.over:
            code = dict(headers).get(ERROR_CODE)
            self._fields = [field for field in headers if field[0] == ERROR_CODE]
            self.fail(self._of_local_reply(status, code), End.REFUSED)

    # --- from the request ------------------------------------------------------------------------------------------

    def fail(self, refusal: Refusal, end: End) -> None:
        """End the answer with an error: as a status before the head, as an event after it."""
        if self.over:
            return
        self.over = True
        response = self._response
        if not response.started:
            self._owner.answered(end, refusal.status, refusal.code)
            fields = [*self._asked.headers, *self._fields, *refusal.headers, _JSON]
            response.send(refusal.status, fields, self._asked.render(refusal))
            return
        self._owner.answered(end, response.status, refusal.code)
        self._end_stream(errors.envelope(refusal), refusal)

    def keep_alive(self) -> None:
        """Send a comment: the stream is silent."""
        self._response.write(KEEPALIVE)

    # -----------------------------------------------------------------------------------------------------------------

    def _stream(self) -> ChunkRewriter | ResponseEvents:
        if self._asked.endpoint.kind is _RESPONSE:
            return ResponseEvents(self._asked.model, collect=False)
        asked = self._asked
        if asked.routed == asked.name:
            routed = asked.model
        else:
            # What else would have to be written in JSON is decoded.
            routed = b'"%b"' % asked.routed.encode() if _plain(asked.routed) else b""
        return ChunkRewriter(asked.model, keep_usage=asked.keep_usage, routed=routed)

    def _collector(self) -> ChunkAggregator | ResponseEvents:
        if self._asked.endpoint.kind is _RESPONSE:
            return ResponseEvents(self._asked.model, collect=True)
        return ChunkAggregator(self._asked.model)

    def _keep(self, data: bytes) -> None:
        self._size += len(data)
        if self._mode is Mode.ERROR and self._size > engine_errors.BODY_BYTES:
            return
        if self._size > _MAX_ANSWER:
            raise AnswerTooLargeError
        self._pieces.append(data)

    def _whole(self) -> None:
        """Pass an answer on that is no stream, with the client's model name."""
        body = b"".join(self._pieces)
        try:
            found = json_body.parse_answer(body)
            self._usage = usage_of(found.members.get("usage"))
            if "model" in found.members:
                body = found.replaced({"model": self._asked.model})
        except RequestError:
            self.fail(errors.upstream_error("The engine's answer is not JSON."), End.ENGINE_ERROR)
            return
        self._send(self.status, body)

    def _send(self, status: int, body: bytes) -> None:
        self.over = True
        self._owner.answered(_COMPLETE, status, None)
        self._response.send(status, [*self._asked.headers, *self._fields, _JSON], body)

    def _error_answer(self) -> None:
        """Pass an error of the engine on, or wrap it."""
        body = b"".join(self._pieces)
        path = self._asked.endpoint.path
        if self._size <= engine_errors.BODY_BYTES and engine_errors.is_envelope(body):
            self.over = True
            self._owner.answered(End.ENGINE_ERROR, self.status, None)
            self._response.send(self.status, [*self._asked.headers, *self._fields, _JSON], body)
        else:
            self.fail(engine_errors.wrapped(self.status, body, path), End.ENGINE_ERROR)

    def _engine_error(self, error: EngineStreamError) -> None:
        """The engine reported an error in its stream: nothing of worth follows."""
        self._owner.failed("error event of the engine")
        if self._mode is _STREAM and error.before:
            self._response.write(error.before)
        if error.data is None:
            self.fail(_UNREADABLE, End.ENGINE_ERROR)
            return
        refusal = engine_errors.of_event(error.data)
        if not self._response.started or not engine_errors.is_envelope(error.data):
            self.fail(refusal, End.ENGINE_ERROR)
            return
        self.over = True
        self._owner.answered(End.ENGINE_ERROR, self._response.status, None)
        self._end_stream(error.data, refusal)

    def _give_up(self, refusal: Refusal) -> None:
        self._owner.failed("answer that cannot be used")
        self.fail(refusal, End.ENGINE_ERROR)

    def _end_stream(self, data: bytes, refusal: Refusal) -> None:
        """Write the error event `data`, or that of the Responses API, and end the stream."""
        response = self._response
        if self._asked.endpoint.kind is _RESPONSE:
            number = self._events.sequence_number if isinstance(self._events, ResponseEvents) else 0
            event = {
                "type": "error",
                "code": refusal.code,
                "message": refusal.message,
                "param": refusal.param,
                "sequence_number": number,
                # Beside the members of the API's own event, for clients that look for an error there, as the SDK does.
                "error": {
                    "message": refusal.message,
                    "type": refusal.type,
                    "param": refusal.param,
                    "code": refusal.code,
                },
            }
            response.write(b"event: error\ndata: " + msgspec.json.encode(event) + b"\n\n")
        else:
            response.write(b"data: " + data + b"\n\ndata: [DONE]\n\n")
        response.end()

    def _of_local_reply(self, status: int, code: bytes | None) -> Refusal:
        if status == 404 and not self._owner.was_served():
            return errors.model_not_found(self._asked.name)
        if status in (404, 503):
            return errors.no_capacity()
        if status == 413:
            return errors.upstream_error(
                "The worker did not take the request, which is too large to be sent to another one."
            )
        if status == 502:
            return errors.upstream_error("No worker gave an answer to the request. It may have been processed.")
        return errors.INTERNAL_ERROR if code is None else errors.no_capacity()
