"""The worker process: logging, signals, start and shutdown."""

import asyncio
import logging
import signal
from collections.abc import Mapping, MutableMapping
from datetime import UTC, datetime
from typing import Any, TextIO

import structlog
import uvloop

from stargate_client.settings import WorkerSettings
from stargate_client.worker import StartError, Worker
from tunnel_protocol import compilation
from tunnel_protocol.observers.line_logger import LibraryLines, LineLoggerFactory
from tunnel_protocol.observers.line_writer import LineWriter
from tunnel_protocol.observers.sampler import SampleLines, Sampler, summary_event
from tunnel_protocol.observers.standard_streams import say

_log = structlog.get_logger()

_LAST_LINES_S = 1.0
"""Seconds that shutdown waits for the reader of the log."""


def run_process(settings: WorkerSettings, environment: Mapping[str, str], out: TextIO) -> int:
    """Run the worker until SIGTERM or SIGINT; log lines go to the descriptor of `out`. Returns the exit code."""
    writer = _log_to(out.fileno(), environment)
    try:
        _log.info("starting worker", **compilation.reported())
        for flag in settings.ignored:
            _log.warning("this worker does not implement the flag; it is ignored", flag=flag)
        return uvloop.run(_run(settings))
    finally:
        writer.close(_LAST_LINES_S)


def _log_to(descriptor: int, environment: Mapping[str, str]) -> LineWriter:
    """Configure structlog and the standard library's logging to write in a thread, without blocking the event loop."""
    render = structlog.dev.ConsoleRenderer(colors=False)
    sampler = Sampler()

    def own_line(level: str, fields: dict[str, Any]) -> str:
        return render(None, level, {"level": level, "timestamp": datetime.now(UTC).isoformat(), **fields})

    def lost_lines_reported(count: int) -> str:
        return own_line("warning", {"event": f"{count} log lines were dropped", "dropped": count})

    def reminders() -> tuple[list[str], bool]:
        summaries, more = sampler.summaries()
        return [own_line("warning", summary_event(summary)) for summary in summaries], more

    def line(logger: Any, method: str, event: MutableMapping[str, Any]) -> str:
        text = str(event.get("event", ""))
        try:
            return render(logger, method, event)
        except Exception as error:  # noqa: BLE001 - methods of a value can raise anything
            return own_line(method, {"event": text, "not_shown_because": type(error).__name__})

    writer = LineWriter(descriptor, lost_lines_reported, name="log", reminders=reminders)
    level = environment.get("RUST_LOG", "info").split(",")[0].upper()
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping().get(level, logging.INFO)),
        processors=[
            SampleLines(sampler, writer.remind),
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            line,
        ],
        logger_factory=LineLoggerFactory(writer),
        cache_logger_on_first_use=True,
    )
    root = logging.getLogger()
    root.handlers[:] = [LibraryLines()]
    root.setLevel(logging.WARNING)
    return writer


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
        say(f"Error: {error}\n")
        return 1
    finally:
        stopping.cancel()
        await worker.stop()
    return 0
