"""Runs a router of several processes from its settings to the exit code, as `router/process/lifecycle.py` runs one.

Signals: the first SIGTERM or SIGINT drains all processes within the drain time, the second ends them at once; SIGHUP goes to all.
"""

import asyncio
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from router.config.cli import COMMAND_LINE
from router.config.option_values import MAX_PROCESSES, SocketAddress
from router.config.settings import Settings
from router.config.startup_checks import StartupError, check_options, listen_address
from router.http1.server import HttpServer
from router.process.openai_services import check_front
from router.process.ports_file import write_ports_document
from router.process.sockets import bind_tcp_everywhere, bound_address, reserve_tcp
from router.supervisor import cpu_limit
from router.supervisor.operators import OperatorsPort, ProcessMetrics
from router.supervisor.plan import ProcessPlan, check_processes, plan_processes
from router.supervisor.router_process import RouterProcess, inherited_environment
from router.supervisor.supervisor import FirstStartError, Supervisor, addresses_of
from router.telemetry import build
from router.telemetry import logging as log_lines
from tunnel_protocol.observers.standard_streams import say

_log = structlog.get_logger()

_LAST_LINES_S = 1.0
"""Seconds that the end waits until the log lines are written."""


def number_of_processes(settings: Settings) -> int:
    """What `--processes` says; for `auto` the cores of the CPU limit, up to `MAX_PROCESSES`."""
    return min(cpu_limit.cores(), MAX_PROCESSES) if settings.processes == "auto" else settings.processes


def run_processes(settings: Settings, count: int, arguments: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run `count` processes until the router ends; returns the exit code. Errors are written to stderr as `Error: ...`."""
    writer = log_lines.set_up(settings.log_format, environment, process=settings.stargate_id)
    try:
        return asyncio.run(_run(settings, count, arguments, environment))
    except StartupError as error:
        log_lines.flush(_LAST_LINES_S)
        say(f"{error.report()}\n")
        return 1
    finally:
        if writer is not None:
            writer.close(_LAST_LINES_S)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ports:
    """What the supervisor has bound."""

    http: SocketAddress
    model_discovery: SocketAddress
    metrics: SocketAddress
    openai: SocketAddress | None
    """None if there is no port for OpenAI clients."""


class _Signals:
    """The first signal is kept, the second ends everything, and SIGHUP is passed on."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.received: asyncio.Future[str] = loop.create_future()
        self.supervisor: Supervisor | None = None
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._end, number)
        loop.add_signal_handler(signal.SIGHUP, self._reload)

    def _end(self, number: signal.Signals) -> None:
        if not self.received.done():
            self.received.set_result(number.name)
            return
        _log.info("received second termination signal; forcing immediate exit", signal=number.name)
        if self.supervisor is not None:
            self.supervisor.signal(signal.SIGKILL)
        log_lines.flush(_LAST_LINES_S)
        os._exit(1)

    def _reload(self) -> None:
        _log.info("reload requested; it is passed on to all processes")
        if self.supervisor is not None:
            self.supervisor.signal(signal.SIGHUP)


async def _run(settings: Settings, count: int, arguments: Sequence[str], environment: Mapping[str, str]) -> int:
    signals = _Signals()
    _log.info("starting stargate", **build.described(), processes=count)
    check_options(settings)
    check_processes(settings, count)
    if settings.openai_listen_addr is not None:
        check_front(settings, listen_address(settings, "openai_listen_addr"), several=True)
    shown = settings.shown
    http_address = listen_address(settings, "http_listen_addr")
    openai_address = None if settings.openai_listen_addr is None else listen_address(settings, "openai_listen_addr")
    models_address = listen_address(settings, "model_discovery_listen_addr")
    with (
        reserve_tcp(models_address, "model-discovery", shown("model_discovery_listen_addr")) as models,
        reserve_tcp(http_address, "HTTP", shown("http_listen_addr")) as http,
        ExitStack() as optional,
        bind_tcp_everywhere(settings.metrics_port, "metrics", shown("metrics_port")) as metrics_socket,
    ):
        openai = None
        if openai_address is not None:
            openai = optional.enter_context(reserve_tcp(openai_address, "OpenAI", shown("openai_listen_addr")))
        ports = _Ports(
            http=bound_address(http),
            model_discovery=bound_address(models),
            metrics=bound_address(metrics_socket),
            openai=None if openai is None else bound_address(openai),
        )
        plans = plan_processes(settings, count, ports.http, ports.model_discovery, ports.openai)
        command = [sys.executable, *sys.orig_argv[1 : len(sys.orig_argv) - len(arguments)]]
        inherited = inherited_environment(environment)

        async def launch(plan: ProcessPlan) -> RouterProcess:
            return await RouterProcess.start([*command, *COMMAND_LINE.replaced(arguments, plan.options)], inherited)

        supervisor = Supervisor(
            plans,
            launch,
            on_ended=lambda slot: metrics.retire(slot),
            on_serving=lambda: _publish(settings, supervisor, ports),
        )
        metrics = ProcessMetrics(settings, lambda: supervisor.slots)
        signals.supervisor = supervisor
        port = OperatorsPort(settings, metrics, lambda: supervisor.slots)
        operators = port.server()
        await operators.start(metrics_socket)
        try:
            return await _supervise(settings, supervisor, signals, port, operators, ports)
        finally:
            port.feed.close()
            operators.abort()
            await operators.drain(0)
            await supervisor.drain(0)


async def _supervise(
    settings: Settings,
    supervisor: Supervisor,
    signals: _Signals,
    port: OperatorsPort,
    operators: HttpServer,
    ports: _Ports,
) -> int:
    drain_s = settings.shutdown_drain_timeout_ms / 1000
    watching = asyncio.create_task(_watch(supervisor))
    starting = asyncio.create_task(supervisor.start())
    try:
        await _first(starting, signals.received)
        if starting.done():
            starting.result()
            _publish(settings, supervisor, ports, first=True)
            _log.info("all processes serve", http=str(ports.http), metrics=str(ports.metrics))
            await _first(signals.received, supervisor.failed, watching)
        if not signals.received.done():
            _log.error("the supervisor failed, beginning graceful shutdown")
            await supervisor.drain(drain_s)
            return 1
        _log.info("received termination signal, beginning graceful shutdown", signal=signals.received.result())
        _log.info("Entering draining mode")
        if not settings.lame_duck_ms:
            port.feed.close()
            await operators.drain(0)
        if await supervisor.drain(drain_s):
            _log.info("graceful shutdown complete")
            _log.info("stargate stopped cleanly")
            return 0
        _log.info("a process did not end in order", timeout_ms=settings.shutdown_drain_timeout_ms)
    except FirstStartError as error:
        _log.error("the router did not start", error=str(error))
        await supervisor.drain(drain_s)
    finally:
        for task in (starting, watching):
            task.cancel()
        await asyncio.wait([starting, watching])
    return 1


async def _first(*futures: "asyncio.Future[Any]") -> None:
    await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)


async def _watch(supervisor: Supervisor) -> None:
    while True:
        await asyncio.sleep(1.0)
        supervisor.end_silent()


def _publish(settings: Settings, supervisor: Supervisor, ports: _Ports, *, first: bool = False) -> None:
    """Write the ports file; after the start, a failure is only logged."""
    if settings.ports_file is None:
        return
    path = Path(settings.ports_file)
    try:
        write_ports_document(path, _document(supervisor, ports))
    except StartupError as error:
        if first:
            raise
        _log.warning("the ports file is not up to date", path=str(path), error=": ".join(error.causes))


def _document(supervisor: Supervisor, ports: _Ports) -> dict[str, object]:
    """As the document of one process, whose own ports are those of the first; and those of all in `processes`."""
    processes = []
    for slot in supervisor.slots:
        process = slot.serving
        found = addresses_of(None if process is None else process.serving)
        processes.append(
            {
                "stargate_id": slot.plan.stargate_id,
                "pid": None if process is None else process.pid,
                **{name: found.get(name) for name in ("reverse_tunnel", "grpc", "metrics")},
            }
        )
    return {
        "pid": os.getpid(),
        "reverse_tunnel": processes[0]["reverse_tunnel"],
        "grpc": processes[0]["grpc"],
        "model_discovery": str(ports.model_discovery),
        "http": str(ports.http),
        "metrics": str(ports.metrics),
        **({} if ports.openai is None else {"openai": str(ports.openai)}),
        "processes": processes,
    }
