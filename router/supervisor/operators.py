"""The metrics port of a router with several processes: the sum of their metrics, and the explain page of one of them."""

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final
from urllib.parse import parse_qs

import structlog

from router.config.settings import Settings
from router.http1.request import ClientRequest
from router.http1.response import Response, ResponseFlow
from router.http1.server import HttpServer
from router.http1.settings import ConnectionTimeouts, HttpSettings
from router.supervisor.metric_page import MetricFamily, MetricPageError, parse_page, render_page
from router.supervisor.metric_sum import MetricSum, Page, counted
from router.supervisor.scrape import NoPageError, fetch
from router.supervisor.supervisor import Slot, addresses_of
from router.telemetry.families import Counter, Description, Gauge
from router.telemetry.metrics import Metrics
from tunnel_protocol.limit import Limit

_log = structlog.get_logger()

CONNECTIONS = Limit("supervisor.metrics_connections", pieces=256)
"""Connections of the metrics port."""

FETCH_S: Final = 2.0
"""Seconds that a process may take to answer."""

_HTTP: Final = HttpSettings(
    close_unread=True,
    max_connections=CONNECTIONS.pieces or 0,
    timeouts=ConnectionTimeouts(discard=1.0, half_sent=1.0, watch=1.0, stalled=5.0, head=5.0, body=5.0),
)
_EXPOSITION: Final = [(b"content-type", b"text/plain; version=0.0.4")]


class ProcessMetrics:
    """The metrics of all processes together."""

    def __init__(self, settings: Settings, slots: Callable[[], Sequence[Slot]]) -> None:
        """`slots` returns the slots of the supervisor."""
        prefix = settings.metrics_prefix
        self._slots = slots
        self._sum = MetricSum(prefix)
        self._last: dict[str, Page] = {}
        """The last page of each process, by its id."""
        self._fetching: asyncio.Task[list[Page]] | None = None
        self._contract = Metrics(prefix, as_of_0_18=settings.as_of_0_18).contract_names()
        self._up = Gauge(prefix, Description("process_up", "1 if this process of the router serves", ("stargate_id",)))
        self._restarts = Counter(
            prefix, Description("process_restarts_total", "Restarts of this process of the router", ("stargate_id",))
        )
        for slot in slots():
            labels = (slot.plan.stargate_id,)
            self._up.track(lambda slot=slot: int(slot.serving is not None), labels)  # type: ignore[misc]
            self._restarts.track(lambda slot=slot: slot.restarts.restarts, labels)  # type: ignore[misc]

    async def page(self, *, additional: bool) -> str:
        """The contract families of all processes, or with `additional` all families and those about the processes."""
        total = self._sum.total(await self._pages())
        if not additional:
            return render_page(family for family in total.values() if family.name in self._contract)
        lines: list[str] = []
        for own in (self._up, self._restarts):
            own.lines(lines)
        return render_page([*total.values(), *parse_page("".join(lines)).values()])

    def retire(self, slot: Slot) -> None:
        """The process of `slot` has ended: its counters stay, as of its last page."""
        self._sum.retire(self._last.pop(slot.plan.stargate_id, {}))

    async def _pages(self) -> list[Page]:
        """The pages of all processes; scrapes at the same time share one look."""
        if self._fetching is None or self._fetching.done():
            self._fetching = asyncio.create_task(self._fetch_all())
        return await asyncio.shield(self._fetching)

    async def _fetch_all(self) -> list[Page]:
        return list(await asyncio.gather(*(self._fetch(slot) for slot in self._slots())))

    async def _fetch(self, slot: Slot) -> Page:
        stargate_id, process = slot.plan.stargate_id, slot.serving
        if process is None:
            return {}
        try:
            answer = await fetch(_metrics_address(slot), b"/metrics/all", FETCH_S)
            page: dict[str, MetricFamily] = parse_page(answer.body.decode())
        except (NoPageError, MetricPageError, UnicodeDecodeError) as error:
            if slot.process is not process:
                return {}  # it has ended, and its last page is in the sum
            _log.warning("no metrics of a process", router=stargate_id, error=str(error))
            return counted(self._last.get(stargate_id, {}))
        if slot.process is not process:
            return {}
        self._last[stargate_id] = page
        return page


class OperatorsPort:
    """Answers `/metrics`, `/metrics/all` and `/explain`."""

    def __init__(self, settings: Settings, metrics: ProcessMetrics, slots: Callable[[], Sequence[Slot]]) -> None:
        self._all_families = settings.metrics_families == "all"
        self._metrics = metrics
        self._slots = slots
        self._answers: set[asyncio.Task[None]] = set()

    def server(self) -> HttpServer:
        """A server for a bound socket (`HttpServer.start`)."""
        return HttpServer(self, time.monotonic, _HTTP)

    # --- ServerCallbacks ---------------------------------------------------------------------------------------------

    def handle(self, request: ClientRequest, response: Response) -> ResponseFlow | None:
        """Answer when the processes have answered."""
        request.body.detach()
        if request.path not in (b"/metrics", b"/metrics/all", b"/explain"):
            response.send(404, [])
        elif request.method not in (b"GET", b"HEAD"):
            response.send(405, [(b"allow", b"GET,HEAD")])
        elif request.path == b"/explain":
            self._answer(self._explain(request, response), response)
        else:
            self._answer(self._show(request, response), response)
        return None

    def refuse(self, request: ClientRequest | None, response: Response, status: int, reason: str) -> None:  # noqa: ARG002
        """Answer an unusable request."""
        response.send(status, [])

    def connection_refused(self, reason: str) -> None:
        """A connection beyond the limit was closed."""

    # --- answers -----------------------------------------------------------------------------------------------------

    def _answer(self, work: Coroutine[Any, Any, None], response: Response) -> None:
        task = asyncio.create_task(work)
        self._answers.add(task)

        def ended(done: asyncio.Task[None]) -> None:
            self._answers.discard(done)
            error = None if done.cancelled() else done.exception()
            if error is not None:
                _log.error("a request of the metrics port failed", error=repr(error))
                response.send(500, [])

        task.add_done_callback(ended)

    async def _show(self, request: ClientRequest, response: Response) -> None:
        additional = self._all_families or request.path == b"/metrics/all"
        page = await self._metrics.page(additional=additional)
        response.send(200, _EXPOSITION, page.encode())

    async def _explain(self, request: ClientRequest, response: Response) -> None:
        """Ask the process that `process` (its number) names, or the first that serves."""
        query = request.target.partition(b"?")[2]
        named = parse_qs(query.decode("ascii", "replace")).get("process", [""])[-1]
        slots = self._slots()
        if named and not (named.isascii() and named.isdigit() and len(named) < 5 and int(named) < len(slots)):
            document = b'{"error":"`process` must be the number of a process, from 0"}'
            response.send(400, [(b"content-type", b"application/json")], document)
            return
        chosen = slots[int(named)] if named else next((slot for slot in slots if slot.serving), slots[0])
        try:
            answer = await fetch(_metrics_address(chosen), b"/explain?" + query, FETCH_S)
        except NoPageError as error:
            _log.warning("no explain page of a process", router=chosen.plan.stargate_id, error=error.reason)
            document = b'{"error":"the process did not answer"}'
            response.send(503, [(b"content-type", b"application/json")], document)
            return
        headers = [(b"content-type", answer.content_type), (b"x-stargate-id", chosen.plan.stargate_id.encode())]
        response.send(answer.status, headers, answer.body)


def _metrics_address(slot: Slot) -> str:
    process = slot.serving
    if process is None:
        raise NoPageError("the process does not serve now")
    return addresses_of(process.serving)["metrics"]
