"""Runs the program from its settings to the exit code: start, wait for a signal or a failed task, shut down in time."""

import asyncio
import os
import signal
from collections.abc import Mapping
from contextlib import AsyncExitStack
from typing import Any

import structlog
import uvloop

from kubernetes_router.app import Application, start
from kubernetes_router.file_limit import raise_file_limit
from kubernetes_router.settings import Settings
from router.config.startup_checks import StartupError
from router.telemetry import build
from router.telemetry import logging as log_lines
from tunnel_protocol import compilation
from tunnel_protocol.observers.standard_streams import say

_log = structlog.get_logger()

_LAST_LINES_S = 1.0
"""Seconds that the end waits until the log lines are written."""


def run_process(settings: Settings, environment: Mapping[str, str]) -> int:
    """Run until the end; returns the exit code. Errors are written to stderr as `Error: ...`."""
    writer = log_lines.set_up(settings.log_format, environment)
    try:
        raise_file_limit()
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_run(settings, environment))
    except StartupError as error:
        log_lines.flush(_LAST_LINES_S)
        say(f"{error.report()}\n")  # not a log line: operators expect this format
        return 1
    finally:
        if writer is not None:
            writer.close(_LAST_LINES_S)


class Signals:
    """Handles SIGTERM and SIGINT: the first one starts the shutdown, the second one ends the process."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.received: asyncio.Future[str] = loop.create_future()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, number.name)

    def _on_signal(self, name: str) -> None:
        if not self.received.done():
            self.received.set_result(name)
            return
        _log.error(f"received second {name} during graceful shutdown")
        log_lines.flush(_LAST_LINES_S)
        say(f"Error: received second {name} during graceful shutdown\n")
        os._exit(1)


async def _run(settings: Settings, environment: Mapping[str, str]) -> int:
    signals = Signals()
    _log.info("starting stargate-k8s-router", **build.described(), **compilation.reported())
    _log.info("settings other than the defaults", **settings.given())
    async with AsyncExitStack() as opened:
        starting = asyncio.create_task(start(settings, environment, opened))
        await _first(starting, signals.received)
        if not starting.done():
            starting.cancel()
            await asyncio.wait([starting])
            _log.info("stargate-k8s-router stopped cleanly")
            return 0
        application = starting.result()
        await _first(signals.received, application.tasks.failed)
        failure = application.tasks.failed.result() if application.tasks.failed.done() else None
        if failure is None:
            name = signals.received.result()
            _log.info("received termination signal, beginning graceful shutdown", signal=name)
        await _shut_down(application, settings)
    if failure is not None:
        raise StartupError(failure)
    _log.info("stargate-k8s-router stopped cleanly")
    return 0


async def _shut_down(application: Application, settings: Settings) -> None:
    limit_ms = settings.shutdown_drain_timeout_ms
    try:
        async with asyncio.timeout(limit_ms / 1000):
            await application.drain()
    except TimeoutError:
        raise StartupError(f"graceful shutdown timed out after {limit_ms} ms") from None


async def _first(*futures: "asyncio.Future[Any]") -> None:
    await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)
