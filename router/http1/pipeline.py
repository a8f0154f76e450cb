"""The requests of one connection, answered one at a time and in their order (RFC 9112 section 9.3.2). Sans-I/O.

Requests wait here while one is answered; when request and response are both complete the next one begins. What the
connection has to do (close, read and drop for a limited time, pause the client) is reported through `PipelineCallbacks`.
"""

from collections import deque
from typing import Final

from mypy_extensions import mypyc_attr

from router.http1.request import ClientRequest
from router.http1.request_parser import RefusedError, RequestParser
from router.http1.response import Response, ResponseFlow, ResponseOutput
from tunnel_protocol.limit import Limit

PIPELINED: Final = Limit("http1.pipelined_requests", pieces=64)
"""Requests of one connection that may wait while another one is answered."""

_MAX_PIPELINED: Final = PIPELINED.pieces or 0
PIPELINED_BEFORE_PAUSE: Final = 8
"""Requests that may wait before the client is paused: while its bytes are not read, its close cannot be seen."""

_STALLED: Final = "request body stalled"
_REFUSALS: Final = {408: "request head stalled", 414: "request target too long", 431: "request head too large"}


@mypyc_attr(allow_interpreted_subclasses=True)
class PipelineCallbacks(ResponseOutput):
    """What a pipeline asks of its connection, and its responses do."""

    __slots__ = ()

    @property
    def closes_when_idle(self) -> bool:
        """Whether the connection has to close after the running response, though its head did not say so."""
        raise NotImplementedError

    def end_input(self) -> None:
        """Read no bytes that arrive from now on as requests."""
        raise NotImplementedError

    def close(self) -> None:
        """Close when the bytes already written have been sent."""
        raise NotImplementedError

    def linger(self) -> None:
        """Close, but read and drop for a limited time what the client still sends (RFC 9112 section 9.6)."""
        raise NotImplementedError

    def start_discarding(self) -> None:
        """The rest of a body is read and dropped; close if it does not end in time."""
        raise NotImplementedError

    def stop_discarding(self) -> None:
        """The dropped body has ended in time."""
        raise NotImplementedError

    def schedule_next(self) -> None:
        """Call `RequestPipeline.next` in a later turn of the event loop."""
        raise NotImplementedError

    def update_reading(self) -> None:
        """`RequestPipeline.wants_reading` may have changed."""
        raise NotImplementedError


@mypyc_attr(allow_interpreted_subclasses=True)
class RequestHandler:
    """Answers requests."""

    __slots__ = ()

    def handle(self, request: ClientRequest, response: Response) -> ResponseFlow | None:
        """Answer now and return None, or return the producer of the response, to be notified about the client."""
        raise NotImplementedError

    def refuse(self, request: ClientRequest | None, response: Response, status: int, reason: str) -> None:
        """Send an answer with `status` now, for a request that is not handled; None for `request` if its head is no head.

        `reason` is one of a fixed set of short texts.
        """
        raise NotImplementedError


class _NullConnection(PipelineCallbacks):
    """The connection of a released pipeline; does nothing."""

    __slots__ = ()

    @property
    def closes_when_idle(self) -> bool:
        return True

    @property
    def draining(self) -> bool:
        return True

    @property
    def peer(self) -> str:
        return ""

    def end_input(self) -> None: ...

    def close(self) -> None: ...

    def linger(self) -> None: ...

    def start_discarding(self) -> None: ...

    def stop_discarding(self) -> None: ...

    def schedule_next(self) -> None: ...

    def update_reading(self) -> None: ...

    def write(self, data: bytes) -> None: ...

    def response_done(self, *, keep_alive: bool) -> None: ...

    def response_broken(self, *, reset: bool) -> None: ...

    def date(self) -> bytes:
        return b""


_NULL_CONNECTION: Final = _NullConnection()


class RequestPipeline:
    """Implements what the parser reports about requests (`RequestCallbacks`, but for the writing of `100 Continue`)."""

    __slots__ = (
        "_body_reading",
        "_close_unread",
        "_connection",
        "_current",
        "_flow",
        "_handler",
        "_parser",
        "_queue",
        "_refusal",
        "_response",
        "_writable",
    )

    def __init__(
        self,
        connection: PipelineCallbacks,
        parser: RequestParser,
        handler: RequestHandler,
        *,
        close_unread: bool,
    ) -> None:
        """`close_unread`: see `HttpSettings`."""
        self._close_unread = close_unread
        self._connection: PipelineCallbacks = connection
        self._parser = parser
        self._handler: RequestHandler = handler
        self._queue: deque[ClientRequest] = deque()
        self._current: ClientRequest | None = None
        self._response: Response | None = None
        self._flow: ResponseFlow | None = None
        self._refusal: int | None = None
        self._body_reading = True
        self._writable = True

    @property
    def answering(self) -> bool:
        """Whether a request is being answered, or the rest of an answered one awaited."""
        return self._current is not None

    @property
    def waiting(self) -> bool:
        """Whether requests wait for their turn."""
        return bool(self._queue)

    @property
    def idle(self) -> bool:
        """Whether no request is being answered and none is arriving, not even a part of a head."""
        return self._current is None and not self._queue and self._parser.between_requests

    @property
    def wants_reading(self) -> bool:
        """Whether to read from the client: the body that arrives has a consumer, and few requests wait."""
        return self._body_reading and len(self._queue) <= PIPELINED_BEFORE_PAUSE

    # --- what arrives ------------------------------------------------------------------------------------------------

    def request_begun(self, request: ClientRequest) -> None:
        """The head of `request` is complete: queue it behind the earlier ones. Raises `RefusedError` if too many wait."""
        if len(self._queue) > _MAX_PIPELINED:
            raise RefusedError(400)
        self._queue.append(request)

    def request_complete(self, request: ClientRequest) -> None:
        """The last byte of `request` has arrived; if it has been answered already, the next one may begin."""
        if request is self._current and self._response is not None and self._response.over:
            self._settled()

    def set_body_reading(self, reading: bool) -> None:
        """Whether the body that arrives can be taken now."""
        self._body_reading = reading
        self._connection.update_reading()

    def refuse(self, status: int) -> None:
        """Answer with `status` when all earlier requests are answered, then close."""
        self._refusal = status
        self._connection.end_input()
        self._parser.abandon()
        if self._current is None and not self._queue:
            self._answer_refusal()

    def body_broken(self, request: ClientRequest, reason: str) -> None:
        """The framing of the body is invalid: notify its consumer, now or when one attaches."""
        self._connection.end_input()
        request.body.fail(reason)
        if request is self._current and self._response is not None and self._response.over:
            self._connection.linger()

    def body_late(self, request: ClientRequest) -> None:
        """The client has stopped sending a body that is being read: answer 408, unless a response has begun."""
        response, flow = self._response, self._flow
        if request is not self._current or response is None:
            self.body_broken(request, _STALLED)
        elif not response.started and not response.over:
            self._connection.end_input()
            self._flow = None
            response.keep_alive = False
            if flow is None:
                self._handler.refuse(request, response, 408, _STALLED)
            else:
                flow.client_stalled(408, _STALLED)

    # --- what is answered --------------------------------------------------------------------------------------------

    def next(self) -> None:
        """Begin the next request if its turn has come."""
        if self._current is not None or not self._queue:
            return
        request = self._queue.popleft()
        response = Response(
            self._connection,
            http_1_0=request.http_1_0,
            keep_alive=request.keep_alive,
            bodyless=request.method == b"HEAD",
            closes_unread=request.body if self._close_unread else None,
        )
        self._current, self._response = request, response
        flow = self._handler.handle(request, response)
        if not response.over:  # else it was answered, or the client has closed
            self._flow = flow
            if flow is not None and not self._writable:
                flow.pause_response()
        self._connection.update_reading()

    def set_writable(self, writable: bool) -> None:
        """Whether the client reads as fast as the response is written; pause or resume the producer."""
        self._writable = writable
        flow = self._flow
        if flow is None:
            return
        if writable:
            flow.resume_response()
        else:
            flow.pause_response()

    def response_done(self, *, keep_alive: bool) -> None:
        """The response is complete; the rest of a body without consumer is read and dropped for a limited time."""
        self._flow = None
        connection, request = self._connection, self._current
        if request is None:  # refused by `_answer_refusal`
            connection.linger()
        elif request.body.complete:
            if keep_alive:
                self._settled()
            elif request.last or self._queue or self._refusal is not None:
                connection.linger()  # the client has sent more, or may
            else:
                connection.close()
        elif not keep_alive or request.body.broken is not None or _withheld(request):
            connection.linger()
        else:
            request.body.detach()
            connection.start_discarding()

    def response_broken(self) -> None:
        """The response ends abnormally; the connection closes."""
        self._flow = None

    def drop_requests(self) -> None:
        """Answer nothing more: forget the current request, which has its response, and drop the waiting ones."""
        self._current = self._response = None
        self._parser.abandon()
        self._queue.clear()

    def client_gone(self) -> None:
        """The client has closed: notify the producer of the running response, once, and drop all requests."""
        flow, self._flow = self._flow, None
        response, self._response = self._response, None
        if response is not None and not response.over:
            if flow is not None:
                flow.client_gone()
            response.abandoned()
        self.drop_requests()

    def release(self) -> None:
        """Cut the reference cycles of an ended connection: it is then freed at once, without the garbage collector."""
        self._connection = _NULL_CONNECTION

    def _settled(self) -> None:
        """Request and response are both complete: begin the next request, or close."""
        connection = self._connection
        connection.stop_discarding()
        self._current = self._response = self._flow = None
        self._body_reading = True
        if connection.closes_when_idle:
            connection.close()
        elif self._queue:
            # Not called from within the previous response: a long pipeline would make a deep call stack.
            connection.schedule_next()
        elif self._refusal is not None:
            self._answer_refusal()
        connection.update_reading()

    def _answer_refusal(self) -> None:
        status = self._refusal or 400
        response = Response(self._connection, http_1_0=False, keep_alive=False, bodyless=False)
        self._handler.refuse(None, response, status, _REFUSALS.get(status, "malformed request"))


def _withheld(request: ClientRequest) -> bool:
    """Whether the client waits for `100 Continue` before it sends the body, and has not received it."""
    return request.expects_continue and not request.body.wanted and not request.body.complete
