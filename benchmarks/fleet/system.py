"""One router and one simulator as processes of this machine, and what is known of them from outside."""

import os
import re
import shlex
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from benchmarks.fleet.simulator import MODEL
from benchmarks.fleet.usage import Usage

_ROOT = Path(__file__).resolve().parents[2]
_STOP_S = 15.0
_POLL_S = 0.05
_ACTIVE = re.compile(
    rf'^stargate_active_inference_servers\{{[^}}]*model="{MODEL}(?:-[0-9]+)?"[^}}]*\}} ([0-9.e+]+)$', re.MULTILINE
)
_LOST = ("reverse tunnel connection failed", "reverse tunnel connection timed out")


class FleetError(Exception):
    """A process ended, or something was not there in time; the message has the end of its log."""


class System:
    """A router under `command` and a simulator, both with logs in `folder`; a context manager that ends both."""

    def __init__(self, command: str, folder: Path) -> None:
        self._command = shlex.split(command)
        self._folder = folder
        self._grpc, self._http, self._models, self._metrics, self._quic = _free_ports(5)
        self._router: subprocess.Popen[bytes] | None = None
        self._simulator: subprocess.Popen[bytes] | None = None

    @property
    def router_pid(self) -> int:
        """Process id of the router. Raises `FleetError` if it does not run."""
        return self._pid(self._router, "router")

    @property
    def simulator_pid(self) -> int:
        """Process id of the simulator. Raises `FleetError` if it does not run."""
        return self._pid(self._simulator, "simulator")

    def start_router(self) -> None:
        """Start the router; returns when its metrics page is there."""
        host = "127.0.0.1"
        options = (
            *("--stargate-id=fleet", f"--listen-addr={host}:{self._grpc}", f"--advertise-addr={host}:{self._grpc}"),
            *(f"--model-discovery-listen-addr={host}:{self._models}", f"--http-listen-addr={host}:{self._http}"),
            *("--stargate-discovery-dns-name=localhost", "--disable-dns-discovery", f"--metrics-port={self._metrics}"),
            *("--backend-connectivity=reverse", f"--reverse-tunnel-listen-addr={host}:{self._quic}"),
            *(f"--advertised-hostname-template={host}", "--tunnel-protocol=raw-quic", "--quic-insecure"),
        )
        self._router = self._start("router", [*self._command, *options])
        self._until(lambda: self._page() is not None, "the router's metrics page", 30)

    @property
    def http_address(self) -> str:
        """Where requests are sent."""
        return f"127.0.0.1:{self._http}"

    @property
    def operators_address(self) -> tuple[str, int]:
        """The port of the metrics and of the live page."""
        return "127.0.0.1", self._metrics

    @property
    def page_url(self) -> str:
        """The live page."""
        return f"http://127.0.0.1:{self._metrics}/"

    def start_simulator(self, workers: int, interval_ms: int, start_per_s: float, models: int = 1) -> None:
        """Start the simulated workers, each with one of so many models."""
        command = [sys.executable, "-m", "benchmarks.fleet.simulator", f"--router=127.0.0.1:{self._grpc}"]
        command += [f"--workers={workers}", f"--interval-ms={interval_ms}", f"--start-per-s={start_per_s}"]
        command += [f"--models={models}"]
        self._simulator = self._start("simulator", command)

    def wait_routable(self, workers: int, timeout_s: float) -> float:
        """Wait until this many workers are routable; returns the seconds it took. Raises `FleetError`."""
        began, before = time.monotonic(), self._cpu_s()
        try:
            self._until(lambda: self._routable() >= workers, f"{workers} routable workers", timeout_s)
        except FleetError as error:
            elapsed = max(time.monotonic() - began, _POLL_S)
            router, simulator = ((after - start) / elapsed for after, start in zip(self._cpu_s(), before, strict=True))
            raise FleetError(
                f"{self._routable()} are routable, {self.lost_handshakes()} handshakes failed, the simulator used "
                f"{simulator:.0%} of a core and the router {router:.0%}; {error}"
            ) from None
        return time.monotonic() - began

    def stop_router(self) -> None:
        """End the router with SIGTERM."""
        router, self._router = self._router, None
        if router is not None:
            _end(router)

    def stop_simulator(self) -> None:
        """End the simulated workers with SIGTERM."""
        simulator, self._simulator = self._simulator, None
        if simulator is not None:
            _end(simulator)

    def lost_handshakes(self) -> int:
        """Number of tunnels so far that workers dialled in vain."""
        log = self._log("simulator")
        return sum(log.count(text) for text in _LOST)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop_simulator()
        self.stop_router()

    # -----------------------------------------------------------------------------------------------------------------

    def _start(self, name: str, command: list[str]) -> "subprocess.Popen[bytes]":
        environment = {
            "PYTHONPATH": str(_ROOT),
            **os.environ,
            "RUST_LOG": "warn",
            "NO_COLOR": "1",
            "no_proxy": "127.0.0.1",
        }
        with (self._folder / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=environment
            )

    def _cpu_s(self) -> tuple[float, float]:
        """CPU seconds so far of the router and of the simulator; a process that does not run counts as nothing."""
        router, simulator = (
            0.0 if process is None else Usage.of(process.pid).cpu_s for process in (self._router, self._simulator)
        )
        return router, simulator

    def _pid(self, process: "subprocess.Popen[bytes] | None", name: str) -> int:
        if process is None or process.poll() is not None:
            raise FleetError(f"the {name} has ended\n{self._log(name)[-2_000:]}")
        return process.pid

    def _log(self, name: str) -> str:
        path = self._folder / f"{name}.log"
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

    def _page(self) -> str | None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._metrics}/metrics", timeout=10) as answer:
                return str(answer.read().decode())
        except (urllib.error.URLError, OSError):
            return None

    def _routable(self) -> int:
        return int(sum(float(value) for value in _ACTIVE.findall(self._page() or "")))

    def _until(self, condition: Callable[[], bool], what: str, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            for process, name in ((self._router, "router"), (self._simulator, "simulator")):
                if process is not None:
                    self._pid(process, name)
            if time.monotonic() > deadline:
                raise FleetError(f"not within {timeout_s:g} s: {what}\n{self._log('simulator')[-2_000:]}")
            time.sleep(_POLL_S)


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _free_ports(count: int) -> list[int]:
    held = [socket.socket() for _ in range(count)]
    try:
        for one in held:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in held]
    finally:
        for one in held:
            one.close()
