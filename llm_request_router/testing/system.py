"""A system under test: one router and any number of workers, each with a mock engine, on free ports of the loopback."""

import http.client
import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from llm_request_router import programs
from llm_request_router.testing.processes import Process

DNS_NAME = "routers.test"
"""The DNS name by which routers with discovery find each other."""


class Ports(NamedTuple):
    """The addresses a router listens on, from its `--ports-file`; each `ip:port`."""

    http: str
    grpc: str
    model_discovery: str
    metrics: str
    reverse_tunnel: str | None
    openai: str | None = None
    """None unless the router was started with `--openai-listen-addr`."""

    @classmethod
    def read(cls, path: Path) -> "Ports | None":
        """Read a ports file; None if it does not exist yet."""
        if not path.exists():
            return None
        document = json.loads(path.read_text(encoding="utf-8"))
        return cls(**{name: document.get(name) for name in cls._fields})


class Reply(NamedTuple):
    """A complete HTTP response; header names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes


class Worker(NamedTuple):
    """A worker and its engine."""

    name: str
    process: Process
    engine: Process
    engine_url: str
    models: tuple[str, ...]


class System:
    """The processes of one test; made by `start`, ended by `close` or as a context manager."""

    def __init__(self, directory: Path, *, remove: bool) -> None:
        self.directory = directory
        self.workers: list[Worker] = []
        self._remove = remove
        self._processes: list[Process] = []
        self._router: Process | None = None
        self._ports: Ports | None = None

    @classmethod
    def start(
        cls,
        *options: str,
        reverse: bool = True,
        discovery: bool = False,
        environment: Mapping[str, str] | None = None,
        directory: Path | None = None,
    ) -> "System":
        """Start a router with these additional command line `options`; returns when it is ready.

        Without `discovery` the router sends no DNS queries; with it, `options` should contain `--dns-nameserver`.
        Logs go to `directory`, or to a temporary directory that `close` removes.
        """
        system = cls(
            Path(tempfile.mkdtemp(prefix="llm-router-")) if directory is None else directory, remove=directory is None
        )
        try:
            system._start_router(options, environment or {}, reverse=reverse, discovery=discovery)
        except BaseException:
            system.close()
            raise
        return system

    @property
    def router(self) -> Process:
        """The router's process. Raises RuntimeError if none was started."""
        if self._router is None:
            raise RuntimeError("no router was started")
        return self._router

    @property
    def ports(self) -> Ports:
        """The addresses the router listens on. Raises RuntimeError before it is ready."""
        if self._ports is None:
            raise RuntimeError("the router is not ready")
        return self._ports

    @property
    def url(self) -> str:
        """Base URL for requests, without trailing slash."""
        return f"http://{self.ports.http}"

    @property
    def reverse(self) -> bool:
        """Whether workers dial the router."""
        return self.ports.reverse_tunnel is not None

    def add_worker(self, *models: str, options: Sequence[str] = (), engine_options: Sequence[str] = ()) -> Worker:
        """Start a mock engine and a worker that serves `models`; returns when requests can be routed to the worker.

        The worker dials the router (reverse mode); start a worker in direct mode with `spawn`.
        """
        name = f"worker-{len(self.workers)}"
        engine, engine_url = self.add_engine(*models, name=f"{name}-engine", options=engine_options)
        process = self.spawn(
            name,
            [
                *programs.command("stargate_client"),
                *("--stargate-address", self.ports.grpc),
                *("--upstream-http-base-url", engine_url),
                *("--inference-server-id", name),
                *("--backend-connectivity", "reverse" if self.reverse else "direct"),
                *(word for model in models for word in ("--model-name", model)),
                *("--min-update-interval-ms", "200"),
                "--quic-insecure",
                *options,
            ],
            programs.environment(os.environ),
        )
        worker = Worker(name, process, engine, engine_url, models)
        self.workers.append(worker)
        process.until(lambda: self._served(models) or None, f"models {models} are routable")
        return worker

    def add_engine(self, *models: str, name: str, options: Sequence[str] = ()) -> tuple[Process, str]:
        """Start a mock engine; returns its process and base URL."""
        ports_file = self.directory / f"{name}.json"
        command = [
            *programs.command("stargate_client.mock_engine"),
            "--port",
            "0",
            "--ports-file",
            str(ports_file),
        ]
        engine = self.spawn(
            name,
            [*command, *(word for model in models for word in ("--model", model)), *options],
            programs.environment(os.environ),
        )
        engine.until(lambda: ports_file.exists() or None, "the engine listens")
        return engine, str(json.loads(ports_file.read_text(encoding="utf-8"))["url"])

    def spawn(self, name: str, command: Sequence[str], environment: Mapping[str, str] | None = None) -> Process:
        """Start another process, which `close` ends and whose log is reported with this system's."""
        process = Process(name, command, self.directory, environment or {})
        self._processes.append(process)
        return process

    def headers(self, model: str, *, input_tokens: int = 1, routing_key: str | None = None) -> dict[str, str]:
        """The headers a gateway sends with a request for `model`."""
        headers = {"x-request-id": "test", "x-model": model, "x-input-tokens": str(input_tokens)}
        return headers if routing_key is None else {**headers, "x-routing-key": routing_key}

    def request(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        address: str | None = None,
        timeout_s: float = 10,
    ) -> Reply:
        """Send one request on a new connection, to the HTTP port or to `address`."""
        connection = http.client.HTTPConnection(address or self.ports.http, timeout=timeout_s)
        try:
            connection.request(method, path, body=body, headers=dict(headers or {}))
            response = connection.getresponse()
            found = {name.lower(): value for name, value in response.getheaders()}
            return Reply(response.status, found, response.read())
        finally:
            connection.close()

    def chat(self, model: str, text: str = "hello", **fields: object) -> Reply:
        """Send one streaming chat completion through the router and read it to its end; `fields` are added to the JSON body."""
        document = {"model": model, "stream": True, "messages": [{"role": "user", "content": text}], **fields}
        headers = {**self.headers(model), "content-type": "application/json"}
        return self.request("POST", "/v1/chat/completions", headers=headers, body=json.dumps(document).encode())

    def metrics(self, *, additional: bool = True) -> dict[str, float]:
        """All samples of the metrics page, by name with labels."""
        page = self.request("GET", "/metrics/all" if additional else "/metrics", address=self.metrics_address)
        lines = (line for line in page.body.decode().splitlines() if line and not line.startswith("#"))
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}

    @property
    def metrics_address(self) -> str:
        """Address of the metrics port on the loopback."""
        return f"127.0.0.1:{self.ports.metrics.rpartition(':')[2]}"

    def logs(self) -> list[tuple[str, str]]:
        """Name and log of each process started so far."""
        return [(process.name, process.log()) for process in self._processes]

    def close(self) -> None:
        """End all processes, workers first."""
        for process in reversed(self._processes):
            process.stop()
        if self._remove:
            shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            for name, log in self.logs():
                error.add_note(f"--- log of {name}\n{log[-3_000:]}")
        self.close()

    def _start_router(
        self, options: Sequence[str], environment: Mapping[str, str], *, reverse: bool, discovery: bool
    ) -> None:
        ports_file = self.directory / "router.ports.json"
        command = [
            *programs.command("router"),
            *("--stargate-id", "test-router"),
            *("--listen-addr", "127.0.0.1:0", "--advertise-addr", "127.0.0.1:0"),
            *("--model-discovery-listen-addr", "127.0.0.1:0", "--http-listen-addr", "127.0.0.1:0"),
            *("--metrics-port", "0", "--stargate-discovery-dns-name", DNS_NAME),
            *(() if discovery else ("--disable-dns-discovery",)),
            *("--quic-insecure", "--ports-file", str(ports_file)),
        ]
        if reverse:
            command += ["--backend-connectivity", "reverse", "--reverse-tunnel-listen-addr", "127.0.0.1:0"]
            command += ["--advertised-hostname-template", "127.0.0.1"]
        found = {**environment, **programs.environment({**os.environ, **environment})}
        self._router = self.spawn("router", [*command, *options], found)
        self._ports = self._router.until(lambda: Ports.read(ports_file), "it told its ports", timeout_s=30)

    def _served(self, models: Sequence[str]) -> bool:
        """Whether all workers started for these models are routable, by the router's count per model."""
        prefix = "stargate_active_inference_servers"
        gauges = {name: count for name, count in self.metrics(additional=False).items() if name.startswith(prefix)}
        for model in models:
            wanted = sum(1 for worker in self.workers if model in worker.models)
            if sum(count for name, count in gauges.items() if f'model="{model}"' in name) < wanted:
                return False
        return True
