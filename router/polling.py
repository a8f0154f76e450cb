"""A loop that looks at something again and again: late ticks do not bunch up, reading never blocks the event loop."""

import asyncio
from collections.abc import Awaitable, Callable


async def every(interval_s: float, look: Callable[[], Awaitable[None]]) -> None:
    """Call `look` each `interval_s` seconds, the first time after one interval, until cancelled."""
    loop = asyncio.get_running_loop()
    due = loop.time() + interval_s
    while True:
        await asyncio.sleep(max(0.0, due - loop.time()))
        await look()
        due = max(due + interval_s, loop.time())
