"""The answers of the mode `gateway`, where they differ: its forms of errors, and models that keep their routed name.

What the gateway loses of an answer is kept: errors within a stream, log probabilities, unknown members.
"""

from typing import Final

import msgspec

from router.openai import errors
from router.openai.endpoints import Kind
from router.openai.gateway_texts import of_engine, phrase, refused
from router.openai.ports import End
from router.openai.worker_answer import Mode, WorkerAnswer
from tunnel_protocol.head import ERROR_CODE, HeaderList

_JSON: Final = (b"content-type", b"application/json")


class GatewayAnswer(WorkerAnswer):
    """The answer of one request."""

    __slots__ = ("_content_type",)

    def start(self, status: int, headers: HeaderList) -> None:
        """See `ResponseWriter.start`."""
        self._content_type = dict(headers).get(b"content-type", b"")
        super().start(status, headers)

    def send(self, status: int, headers: HeaderList, body: bytes = b"") -> None:
        """See `ResponseWriter.send`: a local reply of the router, verbatim or as the text of a message."""
        if self.over:
            return
        if self._asked.endpoint.kind is Kind.CHAT:
            self.fail(refused(status, body.decode() or phrase(status)), End.REFUSED)
        else:
            passed_on = [field for field in headers if field[0] in (ERROR_CODE, b"content-type")]
            self._pass_on(status, passed_on, body, End.REFUSED)

    def end(self) -> None:
        """See `ResponseWriter.end`."""
        if self._events is not None and not self._events.complete and self._mode is Mode.COLLECT and not self.over:
            self._cut()
        else:
            super().end()

    def break_off(self) -> None:
        """See `ResponseWriter.break_off`."""
        if self._mode is Mode.COLLECT and not self.over:
            self._cut()
        else:
            super().break_off()

    def _cut(self) -> None:
        """The answer is cut, and nothing of it was sent."""
        if self._asked.endpoint.kind is Kind.RESPONSE:
            self.fail(refused(500, "Internal Server Error"), End.CUT)
        else:
            self.fail(errors.upstream_error("read stargate stream: unexpected EOF"), End.CUT)

    def _send(self, status: int, body: bytes) -> None:
        """A chat answer ends with a newline, and has no content that is null."""
        if self._asked.endpoint.kind is Kind.CHAT:
            document = msgspec.json.decode(body)
            for choice in document["choices"]:
                message = choice.get("message", {})
                if message.get("content") is None:
                    message.pop("content", None)
            body = msgspec.json.encode(document) + b"\n"
        super()._send(status, body)

    def _error_answer(self) -> None:
        body = b"".join(self._pieces)
        if self._asked.endpoint.kind is Kind.CHAT:
            self._fields = []
            self.fail(of_engine(self.status, body), End.ENGINE_ERROR)
        else:
            kind = [(b"content-type", self._content_type)] if self._content_type else []
            self._pass_on(self.status, [*self._fields, *kind], body, End.ENGINE_ERROR)

    def _pass_on(self, status: int, headers: HeaderList, body: bytes, end: End) -> None:
        self.over = True
        self._owner.answered(end, status, None)
        self._response.send(status, [*self._asked.headers, *headers], body)
