"""A request polls everything that was registered, once at a time; what fails is logged and keeps nothing else from it."""

import asyncio

from structlog.testing import capture_logs

from router.process.reloads import Reloads
from support.waiting import eventually


async def test_a_request_polls_all_and_reopens_logs_although_one_fails() -> None:
    done: list[str] = []

    async def fails() -> None:
        raise ValueError("unreadable")

    async def works() -> None:
        done.append("polled")

    reloads = Reloads()
    reloads.poll("first", fails)
    reloads.poll("second", works)
    reloads.reopen(lambda: done.append("reopened"))
    with capture_logs() as logs:
        reloads.request()
        await eventually(lambda: done == ["reopened", "polled"])
    assert [(line["event"], line.get("what")) for line in logs] == [
        ("reload requested", None),
        ("reload failed", "first"),
    ]


async def test_a_request_before_anything_is_registered_is_harmless() -> None:
    Reloads().request()
    await asyncio.sleep(0)


async def test_a_request_during_another_one_only_reopens_logs() -> None:
    reloads, gate, polls, reopened = Reloads(), asyncio.Event(), [0], [0]

    async def poll() -> None:
        polls[0] += 1
        await gate.wait()

    def reopen() -> None:
        reopened[0] += 1

    reloads.poll("file", poll)
    reloads.reopen(reopen)
    reloads.request()
    await asyncio.sleep(0)
    reloads.request()
    gate.set()
    await asyncio.sleep(0.01)
    assert (polls, reopened) == ([1], [2])
    reloads.request()
    await eventually(lambda: (polls, reopened) == ([2], [3]))
