"""Tasks without which the router is not the router: if one ends while nobody asked for it, the process drains and fails.

Names and texts are what operators search for (docs/operations.md, "Critical tasks").
"""

import asyncio
from collections.abc import Coroutine
from typing import Any

import structlog

from router.config.startup_checks import causes_of

_log = structlog.get_logger()


class CriticalTaskError(Exception):
    """A critical task ended by itself. `task` is its name, `detail` why."""

    def __init__(self, task: str, detail: str) -> None:
        super().__init__(f"critical stargate task `{task}` exited: {detail}")
        self.task = task
        self.detail = detail


class CriticalTasks:
    """Owns the named tasks from start to drain."""

    def __init__(self) -> None:
        self._tasks: dict[asyncio.Task[None], str] = {}
        self._loops: list[asyncio.Task[None]] = []
        self._stopping = False
        self.failed: asyncio.Future[CriticalTaskError] = asyncio.get_running_loop().create_future()

    def start(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        """Run `work` under `name` until the drain; somebody else ends it then."""
        self._start(name, work)

    def start_loop(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        """As `start`, for work that ends only by being cancelled."""
        self._loops.append(self._start(name, work))

    def _start(self, name: str, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name=name)
        self._tasks[task] = name
        task.add_done_callback(self._ended)
        return task

    def begin_stopping(self) -> None:
        """From now on the end of a task is no failure."""
        self._stopping = True

    def unfinished(self) -> list[str]:
        """Names of the tasks that still run."""
        return [name for task, name in self._tasks.items() if not task.done()]

    def cancel_loops(self) -> None:
        """Ask the loops to end."""
        for task in self._loops:
            task.cancel()

    async def close(self) -> None:
        """Cancel the loops, and wait until all tasks have ended; everybody else who ends one was asked to before."""
        self.begin_stopping()
        self.cancel_loops()
        await self.wait()

    async def wait(self) -> None:
        """Returns when all tasks have ended; never raises for them."""
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _ended(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if self._stopping:
            if error is not None:
                _log.warning("task join failed", task=self._tasks[task], error=": ".join(causes_of(error)))
            return
        detail = "exited unexpectedly" if error is None else ": ".join(causes_of(error))
        failure = CriticalTaskError(self._tasks[task], detail)
        if not self.failed.done():
            _log.error("critical task exited", process="stargate", task=failure.task, error=detail)
            self.failed.set_result(failure)
