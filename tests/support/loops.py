"""Event loops for tests: the ordinary one, uvloop, one whose clock jumps, and the one that grpc.aio needs."""

import asyncio
import atexit
import math
import selectors
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import grpc
import uvloop

TEST_DEADLINE_S = 60.0
_LIBRARY = Path(grpc.__file__).parent
Result = TypeVar("Result")


def _stuck(reason: str) -> None:
    raise RuntimeError(reason)


class _JumpingSelector(selectors.SelectSelector):
    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.ends_at = math.inf
        self.stuck = _stuck

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            self.stuck("the test waits for something that no timer is going to bring")
        elif time.monotonic() > self.ends_at:
            self.stuck("the test takes too long, in real time")
        self.now += max(timeout or 0, 0)
        return super().select(0)


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """Its clock jumps to the next timer instead of waiting for it: tests of seconds run in microseconds."""

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now

    def stand_still(self, seconds: float) -> None:
        """Let time pass without running anything, as when the process gets no CPU."""
        self._jumping.now += seconds

    async def within(self, work: Coroutine[Any, Any, Result], deadline_s: float) -> Result:
        """The result of `work`, which is cancelled after so much real time, or when nothing is left that could go on."""
        task, reasons = asyncio.current_task(self), list[str]()
        assert task is not None

        def cancel(reason: str) -> None:
            if reasons:
                _stuck(reason)  # it has been cancelled and still waits
            reasons.append(reason)
            self._jumping.ends_at = math.inf
            self.call_soon(task.cancel)

        self._jumping.ends_at, self._jumping.stuck = time.monotonic() + deadline_s, cancel
        try:
            return await work
        except asyncio.CancelledError as error:
            if reasons:
                raise AssertionError(reasons[0]) from error
            raise
        finally:
            self._jumping.ends_at, self._jumping.stuck = math.inf, _stuck


def run_virtual(work: Coroutine[Any, Any, Result]) -> Result:
    """Run a coroutine in virtual time: for functions that need a loop more than once, as an example of hypothesis does."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(work)


_LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.new_event_loop,
    "uvloop": uvloop.new_event_loop,
    "virtual": VirtualTimeLoop,
}
GRPC = "grpc"
NAMES = (*_LOOPS, GRPC)
_of_grpc = asyncio.Runner()
"""grpc.aio keeps one thread and one queue of events for all loops; an event that arrives for a loop closed meanwhile takes
others down with it, up to a crash. So this loop stays open until the process ends."""
atexit.register(_of_grpc.close)


class TestLoop:
    """The loop of one test: its fixtures and the test itself run on it, one after the other."""

    __test__ = False

    def __init__(self, name: str) -> None:
        self.name = name
        self._runner = _of_grpc if name == GRPC else asyncio.Runner(loop_factory=_LOOPS[name])
        self._before = asyncio.all_tasks(self._runner.get_loop())

    def run(self, work: Coroutine[Any, Any, Result], deadline_s: float) -> Result:
        """The result. Work that takes longer is cancelled, and an error."""
        loop = self._runner.get_loop()
        if isinstance(loop, VirtualTimeLoop):
            return self._runner.run(loop.within(work, deadline_s))
        return self._runner.run(_within(work, deadline_s))

    def close(self) -> list[str]:
        """Cancel what still runs; gives the names of it."""
        loop = self._runner.get_loop()
        left = {task for task in asyncio.all_tasks(loop) - self._before if not _of_the_library(task)}
        names = sorted(getattr(task.get_coro(), "__qualname__", repr(task)) for task in left)
        if self.name != GRPC:
            self._runner.close()
        elif left:
            self._runner.run(_cancel(left))
        return names


def _of_the_library(task: asyncio.Task[Any]) -> bool:
    """Tasks in which grpc.aio tidies up after calls that are over."""
    work = task.get_coro()
    code = getattr(work, "cr_code", None)
    return type(work).__module__.startswith("_cython") or (
        code is not None and Path(code.co_filename).is_relative_to(_LIBRARY)
    )


async def _within(work: Coroutine[Any, Any, Result], deadline_s: float) -> Result:
    try:
        async with asyncio.timeout(deadline_s) as deadline:
            return await work
    except TimeoutError as error:
        if deadline.expired():
            raise AssertionError(f"the test is not over after {deadline_s:g} s") from error
        raise


async def _cancel(tasks: set[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
