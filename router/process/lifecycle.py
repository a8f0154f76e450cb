"""Runs a router from its settings to the exit code: start, wait for a signal or a failed task, drain within the time, end.

The order is in docs/operations.md, "Start and end". Signal handlers are installed before anything else; a second signal ends
the process at once. Nine tenths of the drain time are for running requests and the rest for the end itself, so that the
process ends before the platform kills it.
"""

import asyncio
import gc
import os
import signal
from collections.abc import Coroutine, Mapping
from typing import Any

import structlog
import uvloop

from router.config.settings import Settings
from router.config.startup_checks import StartupError
from router.process.app import start
from router.process.critical_tasks import CriticalTaskError
from router.process.reloads import Reloads
from router.process.router import Router
from router.process.supervision import SupervisorLink, link_descriptor
from router.telemetry import build
from router.telemetry import logging as log_lines
from tunnel_protocol import compilation
from tunnel_protocol.observers.standard_streams import say

_log = structlog.get_logger()

DRAIN_SHARE = 0.9
"""Share of the drain time that running requests may use."""

_LAST_LINES_S = 1.0
"""Seconds that the end waits until the log lines are written."""


def run_process(settings: Settings, environment: Mapping[str, str]) -> int:
    """Run the router until it ends; returns the exit code. Errors are written to stderr as `Error: ...`."""
    link = link_descriptor(environment)
    writer = log_lines.set_up(settings.log_format, environment, process=None if link is None else settings.stargate_id)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_run(settings, link))
    except StartupError as error:
        log_lines.flush(_LAST_LINES_S)
        say(f"{error.report()}\n")  # not a log line: operators expect this format
        return 1
    finally:
        if writer is not None:
            writer.close(_LAST_LINES_S)


class Signals:
    """Handles SIGTERM and SIGINT: the first signal starts a drain, the second ends the process."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.received: asyncio.Future[str] = loop.create_future()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, number.name)

    def request(self, reason: str) -> None:
        """Start a drain as a first signal does; without effect after one."""
        if not self.received.done():
            self.received.set_result(reason)

    def _on_signal(self, name: str) -> None:
        if not self.received.done():
            self.received.set_result(name)
            return
        _log.info("received second termination signal; forcing immediate exit", signal=name)
        log_lines.flush(_LAST_LINES_S)
        os._exit(1)


async def _run(settings: Settings, link: int | None) -> int:
    signals = Signals()
    _log_beginning(settings)
    reloads = Reloads()
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reloads.request)
    if link is None:
        return await _start_and_end(settings, signals, start(settings, reloads))
    supervisor = await SupervisorLink.open(link)
    supervisor.on_end = lambda: signals.request("the supervisor is gone")
    try:
        return await _start_and_end(settings, signals, start(settings, reloads, supervisor))
    finally:
        await supervisor.close()


async def _start_and_end(settings: Settings, signals: Signals, start_of: Coroutine[Any, Any, Router]) -> int:
    starting = asyncio.create_task(start_of)
    await _first(starting, signals.received)
    if not starting.done():
        _stop_reported(signals)
        starting.cancel()
        await asyncio.wait([starting], timeout=settings.shutdown_drain_timeout_ms / 1000)
        _log.info("stargate stopped cleanly")
        return 0
    router = starting.result()
    spare_collector()
    failed = router.tasks.failed
    await _first(signals.received, failed)
    failure = failed.result() if failed.done() else None
    if failure is None:
        _stop_reported(signals)
    else:
        _log.error("critical stargate task failed, beginning graceful shutdown", error=str(failure))
    return await _end(router, settings, failure)


def _log_beginning(settings: Settings) -> None:
    """What runs, in one short line, and with which settings: those given in one more line, all of them at debug."""
    _log.info("starting stargate", **build.described(), **compilation.reported(), stargate_id=settings.stargate_id)
    _log.info("settings other than the defaults", **settings.given())
    for name, value in settings.reported().items():
        _log.debug("setting", name=name, value=value)


def spare_collector() -> None:
    """Exclude the objects made at start from garbage collections, as they stay alive, and collect less often."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)


async def _first(*futures: "asyncio.Future[Any]") -> None:
    await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)


def _stop_reported(signals: Signals) -> None:
    _log.info("received termination signal, beginning graceful shutdown", signal=signals.received.result())
    _log.info("Entering draining mode")


async def _end(router: Router, settings: Settings, failure: CriticalTaskError | None) -> int:
    timeout_s = settings.shutdown_drain_timeout_ms / 1000
    try:
        async with asyncio.timeout(timeout_s):
            in_time = await router.drain(timeout_s * DRAIN_SHARE)
    except TimeoutError:
        in_time = False
    if not in_time:
        _log.info(
            "graceful shutdown timed out; forcing exit",
            timeout_ms=settings.shutdown_drain_timeout_ms,
            unfinished=", ".join(router.unfinished()),
        )
        return 1
    if failure is None:
        _log.info("graceful shutdown complete")
        _log.info("stargate stopped cleanly")
        return 0
    _log.info("stargate shutdown complete after process failure")
    raise StartupError(str(failure))
