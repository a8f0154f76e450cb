"""Waits for conditions, with a deadline; never for time."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

DEADLINE_S = 10.0
Found = TypeVar("Found")


async def eventually(condition: Callable[[], object], deadline_s: float = DEADLINE_S) -> None:
    """Wait until a condition of this process holds, which changes with the turns of the event loop."""
    async with asyncio.timeout(deadline_s):
        while not condition():  # noqa: ASYNC110 - plain memory, nothing to wait on
            await asyncio.sleep(0.001)


async def becomes(condition: Callable[[], Awaitable[Found]], what: str, deadline_s: float = DEADLINE_S) -> Found:
    """Wait until the coroutine function `condition`, which asks another process, gives something true."""
    try:
        async with asyncio.timeout(deadline_s):
            while not (found := await condition()):  # noqa: ASYNC110 - the condition is another process's
                await asyncio.sleep(0.02)
            return found
    except TimeoutError:
        raise AssertionError(f"not within {deadline_s} s: {what}") from None


def wait_until(condition: Callable[[], object], within_s: float = 20, what: str = "the condition holds") -> float:
    """Wait in a thread without a loop until `condition()` is true; the seconds it took."""
    started = time.monotonic()
    while not condition():
        if time.monotonic() - started > within_s:
            raise AssertionError(f"not within {within_s} s: {what}")
        time.sleep(0.01)
    return time.monotonic() - started
