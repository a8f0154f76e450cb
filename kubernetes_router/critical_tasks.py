"""Tasks that the program cannot do without: if one ends before the shutdown, the process shuts down and fails."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import structlog

from router.config.startup_checks import causes_of

_log = structlog.get_logger()


class CriticalTasks:
    """Owns tasks that run until they are cancelled."""

    def __init__(self) -> None:
        self._tasks: dict[asyncio.Task[None], str] = {}
        self._stopping = False
        self.failed: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        """Set to a sentence when a task has ended by itself."""

    def start(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        """Run `work` under `name`."""
        task = asyncio.create_task(work, name=name)
        self._tasks[task] = name
        task.add_done_callback(self._ended)

    async def close(self) -> None:
        """Cancel all tasks and wait until they have ended."""
        self._stopping = True
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _ended(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if self._stopping and error is None:
            return
        detail = "exited unexpectedly" if error is None else ": ".join(causes_of(error))
        _log.error("critical task exited", process="stargate-k8s-router", task=self._tasks[task], error=detail)
        if not self.failed.done():
            self.failed.set_result(f"critical stargate-k8s-router task `{self._tasks[task]}` exited: {detail}")
