"""`python -m stargate_client`: the worker process."""

import asyncio
import logging
import os
import signal
import sys

import structlog
import uvloop

from stargate_client.settings import WorkerSettings, parse
from stargate_client.worker import StartError, Worker

_log = structlog.get_logger()


def main() -> int:
    """Run until SIGTERM or SIGINT; returns the exit code (1: could not start, or a task failed)."""
    settings = parse(sys.argv[1:])
    level = os.environ.get("RUST_LOG", "info").split(",")[0].upper()
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping().get(level, logging.INFO)),
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.dev.ConsoleRenderer(colors=False),
        ],
        cache_logger_on_first_use=True,
    )
    for flag in settings.ignored:
        _log.warning("this worker does not implement the flag; it is ignored", flag=flag)
    return uvloop.run(_run(settings))


async def _run(settings: WorkerSettings) -> int:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    worker = Worker(settings)
    starting = asyncio.create_task(worker.start())
    stopping = asyncio.create_task(stopped.wait())
    try:
        await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            starting.cancel()
            return 0
        starting.result()
        await worker.run(stopped)
    except StartError as error:
        sys.stderr.write(f"Error: {error}\n")
        return 1
    finally:
        stopping.cancel()
        await worker.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
