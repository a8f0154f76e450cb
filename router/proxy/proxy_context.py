"""What all proxied requests share: registry, policy, metrics, settings, limits, and the tasks that run for them."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

import structlog

from router.balancing import Selector
from router.ports.request_ends import NO_REQUEST_ENDS, RequestEnds
from router.proxy.access_log import AccessLog
from router.proxy.head_deadlines import HeadDeadlines
from router.proxy.refusals import Refusals
from router.proxy.replay import ReplayBudget
from router.proxy.request_series import RequestSeries
from router.proxy.request_trace import ProxyTracing
from router.proxy.settings import ProxySettings
from router.registry import Registry
from router.telemetry.metrics import Metrics

_log = structlog.get_logger()


class Clock(Protocol):
    """Monotonic seconds."""

    def __call__(self) -> float:
        """Now."""


class ProxyContext:
    """Shared by all requests of one HTTP port."""

    def __init__(
        self,
        registry: Registry,
        selector: Selector,
        metrics: Metrics,
        settings: ProxySettings,
        clock: Clock,
    ) -> None:
        self.registry = registry
        self.selector = selector
        self.metrics = metrics
        self.request_series = RequestSeries(metrics)
        self.settings = settings
        self.clock = clock
        self.replay_budget = ReplayBudget(settings.max_replay_total_bytes, metrics.replay_budget_exhausted_total.inc)
        self.access_log = AccessLog(finished=settings.access_log, failures=settings.failure_logs)
        self.refusals = Refusals(metrics, self.access_log, clock, bodies_with_reason=settings.reasons_in_bodies)
        self.tracing: ProxyTracing | None = None
        """Set before the first request if traces are exported."""
        self.request_ends: RequestEnds = NO_REQUEST_ENDS
        """Set before the first request if a page shows the last requests."""
        self.running: set[object] = set()
        """The requests that are being proxied."""
        # `asyncio.get_running_loop` costs a system call; requests use this reference.
        self.loop = asyncio.get_running_loop()
        self.head_deadlines = HeadDeadlines(self.loop, settings.request_timeout_ms / 1000)
        self._tasks: set[asyncio.Task[None]] = set()

    def spawn(self, work: Coroutine[Any, Any, None], on_defect: Callable[[], None]) -> asyncio.Task[None]:
        """Run `work` as a task; an exception of it is logged, and `on_defect` is called."""

        def ended(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            if not task.cancelled() and task.exception() is not None:
                _log.error("task of a request ended unexpectedly", exc_info=task.exception())
                on_defect()

        task = self.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(ended)
        return task
