"""Critical tasks: the first one that ends by itself is the failure, with its name; an asked-for end is none."""

import asyncio
from collections.abc import Awaitable, Callable

from router.process.critical_tasks import CriticalTaskError, CriticalTasks


def run(scenario: Callable[[CriticalTasks], Awaitable[None]]) -> None:
    async def main() -> None:
        async with asyncio.timeout(5):
            await scenario(CriticalTasks())

    asyncio.run(main())


async def returns() -> None:
    pass


async def breaks() -> None:
    raise RuntimeError("could not write") from OSError("disk full")


async def lasts() -> None:
    await asyncio.get_running_loop().create_future()


def test_a_task_that_returns_has_exited_unexpectedly() -> None:
    async def scenario(tasks: CriticalTasks) -> None:
        tasks.start("HTTP proxy server", returns())
        failure = await tasks.failed
        assert str(failure) == "critical stargate task `HTTP proxy server` exited: exited unexpectedly"

    run(scenario)


def test_a_task_that_breaks_is_told_with_its_chain_of_causes() -> None:
    async def scenario(tasks: CriticalTasks) -> None:
        tasks.start("metrics server", breaks())
        failure: CriticalTaskError = await tasks.failed
        assert (failure.task, failure.detail) == ("metrics server", "could not write: disk full")

    run(scenario)


def test_only_the_first_failure_is_reported() -> None:
    async def scenario(tasks: CriticalTasks) -> None:
        tasks.start("first", returns())
        await tasks.failed
        tasks.start("second", breaks())
        await tasks.wait()
        assert tasks.failed.result().task == "first"

    run(scenario)


def test_the_end_of_a_task_during_a_drain_is_no_failure() -> None:
    async def scenario(tasks: CriticalTasks) -> None:
        tasks.start_loop("a", lasts())
        tasks.start("b", breaks())
        tasks.begin_stopping()
        assert tasks.unfinished() == ["a", "b"]
        tasks.cancel_loops()
        await tasks.wait()
        assert tasks.unfinished() == []
        assert not tasks.failed.done()

    run(scenario)


def test_closing_cancels_loops_and_waits_for_what_ends_by_itself() -> None:
    async def scenario(tasks: CriticalTasks) -> None:
        ended = asyncio.Event()
        tasks.start_loop("a", lasts())
        tasks.start("b", ended.wait())
        asyncio.get_running_loop().call_later(0.01, ended.set)
        await tasks.close()
        assert ended.is_set()
        assert tasks.unfinished() == []
        assert not tasks.failed.done()

    run(scenario)
