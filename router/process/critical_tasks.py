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
        self._stopping = False
        self.failed: asyncio.Future[CriticalTaskError] = asyncio.get_running_loop().create_future()

    def start(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        """Run `work` under `name` until the drain."""
        task = asyncio.create_task(work, name=name)
        self._tasks[task] = name
        task.add_done_callback(self._ended)

    def begin_stopping(self) -> None:
        """From now on the end of a task is no failure."""
        self._stopping = True

    def unfinished(self) -> list[str]:
        """Names of the tasks that still run."""
        return [name for task, name in self._tasks.items() if not task.done()]

    def cancel(self, name: str) -> None:
        """Ask the tasks of that name to end."""
        for task, its_name in self._tasks.items():
            if its_name == name:
                task.cancel()

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
