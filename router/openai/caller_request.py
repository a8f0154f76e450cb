"""One request whose caller has to be known before it is answered: what requests for workers and for lists have in common."""

import asyncio
from collections.abc import Callable
from typing import Final, TypeVar

import structlog
from mypy_extensions import mypyc_attr

from router.http1.request import ClientRequest
from router.http1.response import Response
from router.openai.errors import INTERNAL_ERROR, of_http
from router.openai.front_context import FrontContext
from router.openai.ports import Caller, End, KeyRefused, Refusal
from tunnel_protocol.head import HeaderList

_log = structlog.get_logger()
_T = TypeVar("_T")
JSON: Final = (b"content-type", b"application/json")


@mypyc_attr(allow_interpreted_subclasses=True)
class CallerRequest:
    """A request of the front; implements `ResponseFlow`. `begin` starts it."""

    def __init__(self, front: FrontContext, request: ClientRequest, response: Response) -> None:
        self._front = front
        self._request = request
        self._response = response
        self._waiting: asyncio.Future[object] | None = None
        self._over = False
        self._caller: Caller | None = None
        self.request_id = front.request_id(request)
        self._headers: HeaderList = front.headers(request, self.request_id)
        """What every answer to this request has."""

    def begin(self) -> None:
        """Find out who the caller is, then go on with `identified`, or answer."""
        self._front.running.add(self)
        request = self._request
        get = request.first.get
        authorization = get(b"authorization")
        api_key: bytes | None = None
        if authorization is None:
            api_key = get(b"x-api-key")
            if api_key is None:
                api_key = get(b"api-key")
        elif len(request.first) != len(request.headers):
            authorization = b",".join([value for name, value in request.headers if name == b"authorization"])
        found: Caller | KeyRefused | asyncio.Future[Caller | KeyRefused]
        found = self._front.services.authenticator.authenticate(authorization, api_key)
        if isinstance(found, asyncio.Future):
            self.wait_for(found, self._on_caller)
        else:
            self._on_caller(found)

    def wait_for(self, waiting: "asyncio.Future[_T]", then: Callable[[_T], None]) -> None:
        """Call `then` with the result when it is there. The end of the request cancels the wait."""
        self._waiting = waiting  # type: ignore[assignment]  # it is only cancelled

        def done(future: "asyncio.Future[_T]") -> None:
            self._waiting = None
            if self._over or future.cancelled():
                return
            error = future.exception()
            if error is not None:
                _log.error("a request could not be checked", exc_info=error)
                self.refuse(INTERNAL_ERROR)
            else:
                then(future.result())

        waiting.add_done_callback(done)

    def _on_caller(self, found: Caller | KeyRefused) -> None:
        if isinstance(found, KeyRefused):
            self.refuse(found)
        else:
            self._caller = found
            self.identified(found)

    def defect(self) -> None:
        """A step that depends on what a client sent has raised: log it, and answer 500. Called where the exception is handled."""
        _log.exception("a request of an OpenAI client could not be handled")
        self.refuse(INTERNAL_ERROR)

    def identified(self, caller: Caller) -> None:
        """The caller is known: go on."""

    def refuse(self, refusal: Refusal, headers: HeaderList | None = None) -> None:
        """Answer with an error, and end. `headers` are further fields."""
        if self._over:
            return
        self.finish(refusal.status, refusal.code)
        if not self._response.started:
            fields = [*self._headers, *(headers or ()), *refusal.headers, JSON]
            self._response.send(refusal.status, fields, self._front.render(refusal))

    def finish(self, status: int, code: str | None) -> None:  # noqa: ARG002 - those that extend it need them
        """The request has ended: release what it holds. Nothing happens the second time."""
        if self._over:
            return
        self._over = True
        self._front.running.discard(self)
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting.cancel()

    def tick(self, now: float) -> None:
        """Some time has passed; `now` in monotonic seconds. For limits that run out while nothing happens."""

    # --- ResponseFlow ----------------------------------------------------------------------------------------------

    def pause_response(self) -> None:
        """The client reads slower than the response is written."""

    def resume_response(self) -> None:
        """The client has caught up."""

    def client_gone(self) -> None:
        """The client has closed."""
        self.finish(0, None)

    def client_stalled(self, status: int, reason: str) -> None:  # noqa: ARG002 - the refusal has a text of its own
        """The client has stopped sending its body."""
        self.refuse(of_http(status))


@mypyc_attr(allow_interpreted_subclasses=True)
class WorkerRequest(CallerRequest):
    """A request that a worker answers: what its answer reports to it and asks of it."""

    def was_served(self) -> bool:
        """Whether the model had workers a short time ago."""
        raise NotImplementedError

    def worker_answered(self, status: int) -> None:
        """The head of a worker's answer is here."""
        raise NotImplementedError

    def failed(self, reason: str) -> None:
        """The rest of the worker's answer is not wanted: end the exchange."""
        raise NotImplementedError

    def answered(self, end: End, status: int, code: str | None) -> None:
        """The client has its whole answer."""
        raise NotImplementedError
