"""Critical tasks: the first one that ends by itself is the failure, with its name; an asked-for end is none."""

import asyncio

import pytest

from router.process.critical_tasks import CriticalTaskError, CriticalTasks


@pytest.fixture
async def tasks() -> CriticalTasks:
    return CriticalTasks()


async def returns() -> None:
    pass


async def breaks() -> None:
    raise RuntimeError("could not write") from OSError("disk full")


async def lasts() -> None:
    await asyncio.get_running_loop().create_future()


async def test_a_task_that_returns_has_exited_unexpectedly(tasks: CriticalTasks) -> None:
    tasks.start("HTTP proxy server", returns())
    failure = await tasks.failed
    assert str(failure) == "critical stargate task `HTTP proxy server` exited: exited unexpectedly"


async def test_a_task_that_breaks_is_told_with_its_chain_of_causes(tasks: CriticalTasks) -> None:
    tasks.start("metrics server", breaks())
    failure: CriticalTaskError = await tasks.failed
    assert (failure.task, failure.detail) == ("metrics server", "could not write: disk full")


async def test_only_the_first_failure_is_reported(tasks: CriticalTasks) -> None:
    tasks.start("first", returns())
    await tasks.failed
    tasks.start("second", breaks())
    await tasks.wait()
    assert tasks.failed.result().task == "first"


async def test_the_end_of_a_task_during_a_drain_is_no_failure(tasks: CriticalTasks) -> None:
    tasks.start_loop("a", lasts())
    tasks.start("b", breaks())
    tasks.begin_stopping()
    assert tasks.unfinished() == ["a", "b"]
    tasks.cancel_loops()
    await tasks.wait()
    assert tasks.unfinished() == []
    assert not tasks.failed.done()


async def test_closing_cancels_loops_and_waits_for_what_ends_by_itself(tasks: CriticalTasks) -> None:
    ended = asyncio.Event()
    tasks.start_loop("a", lasts())
    tasks.start("b", ended.wait())
    asyncio.get_running_loop().call_later(0.01, ended.set)
    await tasks.close()
    assert ended.is_set()
    assert tasks.unfinished() == []
    assert not tasks.failed.done()
