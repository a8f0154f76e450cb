"""Tasks that the router cannot do without: if one ends before the drain, the process drains and fails.

Operators search for the names and texts (docs/operations.md, "Critical tasks").
"""

import asyncio
from collections.abc import Coroutine
from typing import Any

import structlog

from router.config.startup_checks import causes_of

_log = structlog.get_logger()


class CriticalTaskError(Exception):
    """A critical task ended by itself. `task` is its name, `detail` the reason."""

    def __init__(self, task: str, detail: str) -> None:
        super().__init__(f"critical stargate task `{task}` exited: {detail}")
        self.task = task
        self.detail = detail


class CriticalTasks:
    """Owns the critical tasks from start to drain."""

    def __init__(self) -> None:
        self._tasks: dict[asyncio.Task[None], str] = {}
        self._loops: list[asyncio.Task[None]] = []
        self._stopping = False
        self.failed: asyncio.Future[CriticalTaskError] = asyncio.get_running_loop().create_future()

    def start(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        """Run `work` under `name`; the drain ends it by stopping what it serves."""
        self._start(name, work)

    def start_loop(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        """As `start`, for work that ends only when it is cancelled."""
        self._loops.append(self._start(name, work))

    def _start(self, name: str, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name=name)
        self._tasks[task] = name
        task.add_done_callback(self._ended)
        return task

    def begin_stopping(self) -> None:
        """From now on the end of a task is not a failure."""
        self._stopping = True

    def unfinished(self) -> list[str]:
        """Names of the tasks that are still running."""
        return [name for task, name in self._tasks.items() if not task.done()]

    def cancel_loops(self) -> None:
        """Cancel the tasks of `start_loop`."""
        for task in self._loops:
            task.cancel()

    async def close(self) -> None:
        """Cancel the loops and wait until all tasks have ended; what ends the other tasks must have been called before."""
        self.begin_stopping()
        self.cancel_loops()
        await self.wait()

    async def wait(self) -> None:
        """Return when all tasks have ended; does not raise their exceptions."""
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
