"""The worker: engine health, models, router discovery, one registration per router, graceful shutdown."""

import asyncio
import contextlib
import json
import ssl
import time

import structlog
from aiohttp import web
from prometheus_client import CollectorRegistry, Gauge, generate_latest

from stargate_client.discovery import RouterDiscovery
from stargate_client.engine import Engine
from stargate_client.registration import Registration
from stargate_client.router_address import RouterAddress
from stargate_client.router_trust import TrustError, grpc_trust
from stargate_client.serve import Service
from stargate_client.settings import WorkerSettings
from stargate_client.stats import ModelLoad
from tunnel_protocol.control import stargate_pb2
from tunnel_protocol.quic.settings import QuicSettings
from tunnel_protocol.raw_quic import RAW_QUIC
from tunnel_protocol.small_file import FileReader, SmallFileError

_log = structlog.get_logger()

STOP_S = 5.0
_QUIC = QuicSettings(keepalive_ms=3_000, max_streams_bidi=256)
"""Settings of tunnels. Routers probe each second, so a PING is only sent if probes do not arrive for 3 s: a NAT may have
dropped its entry, which only a packet from the worker restores."""


class StartError(Exception):
    """The worker cannot start; the message says why and what to do."""


class Worker:
    """A worker process's components; implements `serve.Models`."""

    def __init__(self, settings: WorkerSettings) -> None:
        self.settings = settings
        self.engine = Engine(settings)
        self._loads: dict[str, ModelLoad] = {}
        self._healthy = True
        self._service = Service(settings, self.engine, self, RAW_QUIC)
        self._registrations: dict[RouterAddress, tuple[Registration, asyncio.Task[None]]] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._metrics = CollectorRegistry()
        self._page: web.AppRunner | None = None

    def load(self, model: str) -> ModelLoad | None:
        """The load of a model; None if the worker does not serve it."""
        return self._loads.get(model)

    async def start(self) -> None:
        """Wait for the engine and its models, then start router discovery. Raises `StartError`."""
        trust = await self._grpc_trust()
        await self._serve_metrics()
        if not self.settings.disable_bringup:
            await self._wait_for_engine()
        models: tuple[str, ...] | None = self.settings.models
        if not models:
            models = await self.engine.models()
            if models is None:
                raise StartError(
                    f"the engine at {self.settings.engine_url} has no usable /v1/models; give --model-name"
                )
        self._admit(models)
        discovery = RouterDiscovery(
            self.settings.stargate_address, trust, lambda routers: self._on_routers(routers, trust)
        )
        self._tasks.append(asyncio.create_task(discovery.run()))
        if not self.settings.disable_bringup and self.settings.health_interval_ms:
            self._tasks.append(asyncio.create_task(self._watch_engine()))
        if not self.settings.models:
            self._tasks.append(asyncio.create_task(self._watch_models()))
        if self.settings.kv_cache_stats_path is not None:
            self._tasks.append(asyncio.create_task(self._watch_kv_cache(self.settings.kv_cache_stats_path)))

    async def run(self, stopped: asyncio.Event) -> None:
        """Run until `stopped` is set, or until one of the tasks fails; then its exception is raised."""
        waiting = asyncio.create_task(stopped.wait())
        done, _ = await asyncio.wait({waiting, *self._tasks}, return_when=asyncio.FIRST_COMPLETED)
        for task in done - {waiting}:
            task.result()
        waiting.cancel()

    async def stop(self) -> None:
        """Report all models as inactive, wait a few seconds for running requests, then close everything."""
        await asyncio.gather(*(registration.leave() for registration, _ in self._registrations.values()))
        running = set(self._service.tasks)
        if running:
            await asyncio.wait(running, timeout=STOP_S - 1)
        everything = [*self._tasks, *(task for _, task in self._registrations.values()), *self._service.tasks]
        for task in everything:
            task.cancel()
        await asyncio.gather(*everything, return_exceptions=True)
        await self.engine.close()
        if self._page is not None:
            await self._page.cleanup()

    # --- models ----------------------------------------------------------------------------------------------------

    def _admit(self, models: tuple[str, ...]) -> None:
        for model in self._loads.keys() - set(models):
            del self._loads[model]
        for model in models:
            if model not in self._loads:
                self._loads[model] = ModelLoad(
                    self.settings.initial_input_tps,
                    pinned=self.settings.pin_input_tps,
                    max_engine_concurrency=self.settings.max_engine_concurrency,
                )

    def _advertised(self, connected: bool) -> dict[str, stargate_pb2.InferenceServerModelRegistration]:
        active = connected and self._healthy
        status = (
            stargate_pb2.INFERENCE_SERVER_STATUS_ACTIVE if active else stargate_pb2.INFERENCE_SERVER_STATUS_INACTIVE
        )
        now = time.monotonic()
        return {
            model: stargate_pb2.InferenceServerModelRegistration(stats=load.snapshot(now), status=status)
            for model, load in self._loads.items()
        }

    # --- engine ----------------------------------------------------------------------------------------------------

    async def _wait_for_engine(self) -> None:
        deadline = time.monotonic() + self.settings.health_wait_ms / 1000
        warned = False
        while not await self.engine.healthy():
            if time.monotonic() >= deadline:
                raise StartError(
                    f"the engine at {self.settings.engine_url} is not healthy "
                    f"(asked {', '.join(self.settings.health_paths)}); is it running?"
                )
            if not warned:
                warned = True
                _log.warning("waiting for a healthy engine", url=self.settings.engine_url)
            await asyncio.sleep(0.5)

    async def _watch_engine(self) -> None:
        while True:
            await asyncio.sleep(self.settings.health_interval_ms / 1000)
            healthy = await self.engine.healthy()
            if healthy != self._healthy:
                self._healthy = healthy
                _log.warning("engine health changed", healthy=healthy)
                self._poke()

    async def _watch_models(self) -> None:
        while True:
            await asyncio.sleep(self.settings.discovery_interval_ms / 1000)
            models = await self.engine.models()
            if models is not None:
                self._admit(models)

    async def _watch_kv_cache(self, path: str) -> None:
        while True:
            with contextlib.suppress(ValueError, KeyError, TypeError):
                async with self.engine.request("GET", path, [], b"") as response:
                    figures = json.loads(await response.read())
                    kv = tuple(int(figures[f"{name}_tokens"]) for name in ("capacity", "used", "free"))
                    for load in self._loads.values():
                        load.kv = (kv[0], kv[1], kv[2])
                        load.capability("machine.kv_cache.http", "kv_cache_stats")
            await asyncio.sleep(1)

    # --- routers ---------------------------------------------------------------------------------------------------

    async def _grpc_trust(self) -> ssl.SSLContext:
        """What verifies routers on gRPC connections with TLS, read once. Raises `StartError`."""
        path, option = self.settings.grpc_tls_ca_cert_path, "--grpc-tls-ca-cert-path"
        if path is None:
            path, option = self.settings.trust_path, "--tls-cert-path"
        try:
            return await FileReader().result(str(path or "system roots"), lambda: grpc_trust(path, option))
        except (TrustError, SmallFileError) as error:
            raise StartError(str(error)) from error

    def _on_routers(self, routers: frozenset[RouterAddress], trust: ssl.SSLContext) -> None:
        for router in self._registrations.keys() - routers:
            self._registrations.pop(router)[1].cancel()
        for router in routers - self._registrations.keys():
            registration = Registration(router, self.settings, trust, self._service, _QUIC, self._advertised)
            task = asyncio.create_task(registration.run())
            self._registrations[router] = (registration, task)
            _log.info("registering", router=router.authority, dial_address=router.dial.target, tls=router.dial.tls)

    def _poke(self) -> None:
        for registration, _ in self._registrations.values():
            registration.poke()

    # --- metrics ---------------------------------------------------------------------------------------------------

    async def _serve_metrics(self) -> None:
        running = Gauge("pylon_running_requests", "Requests being served", registry=self._metrics)
        running.set_function(lambda: len(self._service.tasks))
        routers = Gauge("pylon_registrations", "Routers registered with", registry=self._metrics)
        routers.set_function(lambda: len(self._registrations))
        app = web.Application()
        app.router.add_get("/metrics", self._render)
        self._page = web.AppRunner(app, access_log=None)
        await self._page.setup()
        site = web.TCPSite(self._page, self.settings.metrics_host, self.settings.metrics_port)
        try:
            await site.start()
        except OSError as error:
            raise StartError(f"cannot listen on metrics port {self.settings.metrics_port}: {error}") from error
        if self.settings.ports_file is not None:
            port = self._page.addresses[0][1]
            self.settings.ports_file.write_text(json.dumps({"metrics": port}))

    async def _render(self, request: web.Request) -> web.Response:  # noqa: ARG002
        return web.Response(body=generate_latest(self._metrics), content_type="text/plain")
