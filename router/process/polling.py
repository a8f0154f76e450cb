"""A periodic task: a late round is not made up for, and a failed round does not end it."""

import asyncio
import time
from collections.abc import Awaitable, Callable

import structlog

from router.telemetry.metrics import Metrics

_log = structlog.get_logger()


async def every(interval_s: float, poll: Callable[[], Awaitable[None]], name: str, metrics: Metrics) -> None:
    """Await `poll` every `interval_s` seconds, the first time after one interval, until cancelled.

    A round that raises is counted (`look_again_failures_total`, by `name`) and logged once per distinct error.
    """
    loop = asyncio.get_running_loop()
    due = loop.time() + interval_s
    reported: str | None = None
    while True:
        await asyncio.sleep(max(0.0, due - loop.time()))
        try:
            await poll()
        except Exception as error:  # noqa: BLE001 - no failure of one round may end the task
            metrics.look_again_failures_total.inc((name,))
            text = f"{type(error).__name__}: {error}"
            if text != reported:
                reported = text
                _log.error("a round of a look-again task failed; the last good state stays", task=name, error=text)
        else:
            reported = None
            metrics.look_again_last_success_timestamp_seconds.set(int(time.time()), (name,))
        due = max(due + interval_s, loop.time())
