"""A loop that looks at something again and again: late ticks do not bunch up, and no failed round ends it."""

import asyncio
import time
from collections.abc import Awaitable, Callable

import structlog

from router.telemetry.metrics import Metrics

_log = structlog.get_logger()


async def every(
    interval_s: float,
    look: Callable[[], Awaitable[None]],
    name: str,
    metrics: Metrics,
    again: asyncio.Event | None = None,
) -> None:
    """Call `look` each `interval_s` seconds, the first time after one interval, until cancelled; at once if `again` is set.

    A round that raises is counted (`look_again_failures_total`, by `name`) and told once per distinct error; the next one comes.
    """
    loop = asyncio.get_running_loop()
    due = loop.time() + interval_s
    told: str | None = None
    while True:
        await _pause(due - loop.time(), again)
        try:
            await look()
        except Exception as error:  # noqa: BLE001 - the task outlives any failure of one round
            metrics.look_again_failures_total.inc((name,))
            text = f"{type(error).__name__}: {error}"
            if text != told:
                told = text
                _log.error("a look at a file failed; the last good state stays", task=name, error=text)
        else:
            told = None
            metrics.look_again_last_success_timestamp_seconds.set(int(time.time()), (name,))
        due = max(due + interval_s, loop.time())


async def _pause(seconds: float, again: asyncio.Event | None) -> None:
    if again is None:
        await asyncio.sleep(max(0.0, seconds))
        return
    try:
        async with asyncio.timeout(max(0.0, seconds)):
            await again.wait()
    except TimeoutError:
        return
    again.clear()
