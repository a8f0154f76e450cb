"""One event loop for all tests that use grpc.aio in this process.

The library keeps one thread and one queue of events for all loops; an event that arrives for a loop closed meanwhile takes others down
with it, up to a crash. So the loop stays open until the process ends.
"""

import asyncio
import atexit
from collections.abc import Coroutine
from typing import Any

_runner = asyncio.Runner()
atexit.register(_runner.close)


def run_grpc(test: Coroutine[Any, Any, Any]) -> Any:
    """Like `asyncio.run`, but on the loop that stays."""
    return _runner.run(test)
