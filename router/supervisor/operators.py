"""The operators' port of a router with several processes: the sum of their metrics, one live page, explanations of one of them."""

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

import structlog

from router.config.settings import Settings
from router.http1.request import ClientRequest
from router.http1.server import HttpServer
from router.operators.access import Access
from router.operators.handler import OperatorsHandler
from router.operators.live_feed import LiveFeed
from router.operators.live_pages import live_pages
from router.operators.reply import Page, Reply, StreamPage, query_of, refusal
from router.operators.server import EXPOSITION
from router.supervisor.live_processes import FETCH_S, LiveProcesses
from router.supervisor.metric_page import MetricFamily, MetricPageError, parse_page, render_page
from router.supervisor.metric_sum import MetricSum, counted
from router.supervisor.metric_sum import Page as Families
from router.supervisor.scrape import NoPageError, fetch
from router.supervisor.supervisor import Slot, metrics_address
from router.telemetry.families import Counter, Description, Gauge
from router.telemetry.metrics import Metrics

_log = structlog.get_logger()


class ProcessMetrics:
    """The metrics of all processes together."""

    def __init__(self, settings: Settings, slots: Callable[[], Sequence[Slot]]) -> None:
        """`slots` returns the slots of the supervisor."""
        prefix = settings.metrics_prefix
        self._slots = slots
        self._sum = MetricSum(prefix)
        self._last: dict[str, Families] = {}
        """The last page of each process, by its id."""
        self._fetching: asyncio.Task[list[Families]] | None = None
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

    async def _pages(self) -> list[Families]:
        """The pages of all processes; scrapes at the same time share one look."""
        if self._fetching is None or self._fetching.done():
            self._fetching = asyncio.create_task(self._fetch_all())
        return await asyncio.shield(self._fetching)

    async def _fetch_all(self) -> list[Families]:
        return list(await asyncio.gather(*(self._fetch(slot) for slot in self._slots())))

    async def _fetch(self, slot: Slot) -> Families:
        stargate_id, process = slot.plan.stargate_id, slot.serving
        if process is None:
            return {}
        try:
            answer = await fetch(metrics_address(slot), b"/metrics/all", FETCH_S)
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
    """The pages of the operators' port: `/metrics` as the sum, `/explain` of one process, the live page of all."""

    def __init__(self, settings: Settings, metrics: ProcessMetrics, slots: Callable[[], Sequence[Slot]]) -> None:
        self._all_families = settings.metrics_families == "all"
        self._metrics = metrics
        self._slots = slots
        token_file = settings.operators_token_file
        self._access = Access(None if token_file is None else Path(token_file))
        self.feed = LiveFeed(LiveProcesses(settings.stargate_id, slots))
        """Has to be closed before the server drains."""

    def server(self) -> HttpServer:
        """A server for a bound socket (`HttpServer.start`)."""
        pages: dict[bytes, Page | StreamPage] = {
            b"/metrics": Page(self._contract),
            b"/metrics/all": Page(self._everything),
        }
        return OperatorsHandler({**pages, **live_pages(self.feed, self._explain, self._access)}, self._access).server()

    # --- pages -------------------------------------------------------------------------------------------------------

    async def _contract(self, _request: ClientRequest) -> Reply:
        return await self._show(additional=self._all_families)

    async def _everything(self, _request: ClientRequest) -> Reply:
        return await self._show(additional=True)

    async def _show(self, *, additional: bool) -> Reply:
        page = await self._metrics.page(additional=additional)
        return Reply(200, EXPOSITION, page.encode())

    async def _explain(self, request: ClientRequest) -> Reply:
        """Ask the process that `process` (its number or its id) names, or the first that serves."""
        named = dict(query_of(request)).get("process", "")
        slots = self._slots()
        chosen = _slot_of(named, slots)
        if chosen is None:
            return refusal(400, "`process` must be the number of a process, from 0, or its id")
        query = request.target.partition(b"?")[2]
        try:
            answer = await fetch(metrics_address(chosen), b"/explain?" + query, FETCH_S)
        except NoPageError as error:
            _log.warning("no explain page of a process", router=chosen.plan.stargate_id, error=error.reason)
            return refusal(503, "the process did not answer")
        headers = [(b"content-type", answer.content_type), (b"x-stargate-id", chosen.plan.stargate_id.encode())]
        return Reply(answer.status, headers, answer.body)


def _slot_of(named: str, slots: Sequence[Slot]) -> Slot | None:
    """The slot of this number or id; without either the first that serves. None if there is none."""
    if not named:
        return next((slot for slot in slots if slot.serving), slots[0])
    if named.isascii() and named.isdigit() and len(named) < 5 and int(named) < len(slots):
        return slots[int(named)]
    return next((slot for slot in slots if slot.plan.stargate_id == named), None)
