"""The parts of `stargate-k8s-router` together, in this process."""

import asyncio
import signal
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import h2.events
import msgspec
import pytest
from structlog.testing import capture_logs

from certs import make_self_signed
from kubernetes_router import lifecycle
from kubernetes_router.app import Application, start
from kubernetes_router.critical_tasks import CriticalTasks
from kubernetes_router.grpc_listener import WATCH
from kubernetes_router.settings import COMMAND_LINE, Settings
from router.config.startup_checks import StartupError
from support.http2_peer import Peer, trusting
from support.kubernetes_api import FakeKubernetesApi
from support.kubernetes_objects import endpoint, endpoint_slice
from support.quic_endpoints import echoes, quic_endpoints
from support.quic_relay import naming
from support.waiting import eventually
from tunnel_protocol.errors import ConnectionClosedError

REQUIRED = ("--target-namespace=nvcf", "--target-service-name=routers", "--grpc-pylon-dial-addr=https://door:443")
LOCAL = ("--listen-addr=127.0.0.1:0", "--reverse-tunnel-listen-addr=127.0.0.1:0", "--health-listen-addr=127.0.0.1:0")
FIRST = endpoint_slice("a", endpoint("router-0", "10.0.0.1"))


class Running:
    """An application, and where it listens."""

    def __init__(self, application: Application, ports: dict[str, str]) -> None:
        self.application = application
        self.grpc_port, self.health_port = (int(ports[name].rpartition(":")[2]) for name in ("grpc", "health"))

    async def ready(self) -> tuple[int, str]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.health_port)
        writer.write(b"GET /readyz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        writer.close()
        return int(head.split()[1]), body.decode().strip()


def settings(api: FakeKubernetesApi, folder: Path, *extra: str) -> Settings:
    return COMMAND_LINE.parse([*REQUIRED, *LOCAL, *api.options, f"--ports-file={folder / 'ports'}", *extra], {})


@asynccontextmanager
async def running(api: FakeKubernetesApi, folder: Path, *extra: str) -> AsyncIterator[Running]:
    async with AsyncExitStack() as opened:
        application = await start(settings(api, folder, *extra), {}, opened)
        yield Running(application, msgspec.json.decode((folder / "ports").read_bytes()))


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[FakeKubernetesApi]:
    found = FakeKubernetesApi(tmp_path)
    await found.start()
    yield found
    await found.stop()


async def test_readiness_follows_the_list_and_the_shutdown(api: FakeKubernetesApi, tmp_path: Path) -> None:
    api.refusal = lambda _query: 503
    async with running(api, tmp_path) as at:
        assert await at.ready() == (503, "no list of routers yet")
        api.refusal = lambda _query: None
        await eventually(lambda: api.watching == 1)
        assert await at.ready() == (503, "no router is ready")
        await api.apply(FIRST)
        await eventually(lambda: at.application.grpc.targets.ready)
        assert await at.ready() == (200, "")
        await at.application.drain()
        assert await at.ready() == (503, "shutting down")


async def test_tunnels_are_relayed_counted_and_refused_in_the_shutdown(api: FakeKubernetesApi, tmp_path: Path) -> None:
    async with quic_endpoints() as router, running(api, tmp_path, "--shutdown-drain-timeout-ms=100") as at:
        host, port = router.endpoint.local_address
        await api.apply(endpoint_slice("a", endpoint("router-0", host), quic_port=port))
        await eventually(lambda: at.application.grpc.targets.ready)
        door = at.application.relay.address[1]
        dialled = await router.dial(naming("router-0.stargate.external"), port=door)
        assert await echoes(dialled)
        with pytest.raises(ConnectionClosedError, match="target stargate not ready"):
            await router.dial(naming("router-1.stargate.external"), port=door)
        await eventually(lambda: at.application.relay.open_tunnels == 1)
        with capture_logs() as logs:
            await at.application.drain()
        assert {"tunnels": 1}.items() <= logs[-1].items()
        with pytest.raises(ConnectionClosedError, match="router shutdown before relay connected"):
            await router.dial(naming("router-0.stargate.external"), port=door)
        assert await echoes(dialled), "what is open is relayed as long as the process runs"
        exposition = at.application.metrics.render().decode()
        assert 'quic_connections_total{outcome="accepted"} 1\n' in exposition
        assert 'quic_connections_total{outcome="target_unavailable"} 1\n' in exposition
        assert "tunnels_open 1\n" in exposition


async def test_an_expired_certificate_is_a_reason_not_to_be_ready(
    api: FakeKubernetesApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    identity = make_self_signed(days=1)
    cert, key = tmp_path / "tls.crt", tmp_path / "tls.key"
    cert.write_bytes(identity.cert_pem)
    key.write_bytes(identity.key_pem)
    await api.apply(FIRST)
    extra = (f"--tls-cert-path={cert}", f"--tls-key-path={key}", "--tls-poll-ms=1")
    async with running(api, tmp_path, *extra) as at:
        await eventually(lambda: at.application.grpc.targets.ready)
        assert await at.ready() == (200, "")
        new = make_self_signed(days=2)
        key.write_bytes(new.key_pem)
        cert.write_bytes(new.cert_pem)
        reloads = at.application.metrics.tls_reloads_total
        await eventually(lambda: reloads.value(("server_identity", "success")) == 1)
        with monkeypatch.context() as later:
            later.setattr("time.time", lambda: 4e9)
            assert await at.ready() == (503, "the certificate has expired")


async def test_grpc_is_served_with_tls_if_there_is_a_certificate_for_it(api: FakeKubernetesApi, tmp_path: Path) -> None:
    identity = make_self_signed(ip_addresses=["127.0.0.1"])
    cert, key = tmp_path / "grpc.crt", tmp_path / "grpc.key"
    cert.write_bytes(identity.cert_pem)
    key.write_bytes(identity.key_pem)
    await api.apply(FIRST)
    extra = (f"--grpc-tls-cert-path={cert}", f"--grpc-tls-key-path={key}", "--tls-poll-ms=1")
    async with running(api, tmp_path, *extra) as at:
        peer = await Peer.connect(at.grpc_port, trusting(identity))
        data = (await peer.next(h2.events.DataReceived, peer.request(WATCH))).data
        assert b"https://door:443" in data
        peer.close()
        new = make_self_signed(ip_addresses=["127.0.0.1"])
        key.write_bytes(new.key_pem)
        cert.write_bytes(new.cert_pem)
        reloads = at.application.metrics.tls_reloads_total
        await eventually(lambda: reloads.value(("grpc_server_identity", "success")) == 1)
        (await Peer.connect(at.grpc_port, trusting(new))).close()


@pytest.mark.parametrize("listener", ["gRPC", "health", "reverse tunnel"])
async def test_an_address_in_use_fails_the_start_and_leaves_nothing_open(
    api: FakeKubernetesApi, tmp_path: Path, listener: str
) -> None:
    flag = {
        "gRPC": "--listen-addr",
        "health": "--health-listen-addr",
        "reverse tunnel": "--reverse-tunnel-listen-addr",
    }[listener]
    async with running(api, tmp_path) as at:
        ports = {"gRPC": at.grpc_port, "health": at.health_port, "reverse tunnel": at.application.relay.address[1]}
        port = ports[listener]
        others = [one for one in LOCAL if not one.startswith(flag)]
        found = COMMAND_LINE.parse([*REQUIRED, *others, *api.options, f"{flag}=127.0.0.1:{port}"], {})
        async with AsyncExitStack() as opened:
            with pytest.raises(StartupError, match=f"failed to bind {listener} listener on 127.0.0.1:{port}"):
                await start(found, {}, opened)


async def test_a_ports_file_that_cannot_be_written_fails_the_start(api: FakeKubernetesApi, tmp_path: Path) -> None:
    async with AsyncExitStack() as opened:
        with pytest.raises(StartupError, match="failed to write ports file"):
            await start(settings(api, tmp_path / "nowhere"), {}, opened)


# --- Critical tasks and exit codes ------------------------------------------------------------------------------------


async def test_a_task_that_ends_by_itself_is_told_with_its_reason() -> None:
    async def fail() -> None:
        raise RuntimeError("the reason")

    async def end() -> None:
        return

    for work, detail in ((fail, "the reason"), (end, "exited unexpectedly")):
        tasks = CriticalTasks()
        tasks.start("some task", work())
        tasks.start("another task", asyncio.sleep(60))
        assert await tasks.failed == f"critical stargate-k8s-router task `some task` exited: {detail}"
        await tasks.close()


class FakeApplication:
    """Ends as the test says."""

    def __init__(self, drain: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self.tasks = CriticalTasks()
        self.drain = drain


async def _nothing() -> None: ...


async def run(
    monkeypatch: pytest.MonkeyPatch, then: Callable[[FakeApplication], None], drain: Callable[[], Any] = _nothing
) -> int:
    """The exit code of a run with a fake application; `then` is called when it has started."""

    async def fake_start(*_arguments: object) -> FakeApplication:
        application = FakeApplication(drain)
        asyncio.get_running_loop().call_soon(then, application)
        return application

    monkeypatch.setattr(lifecycle, "start", fake_start)
    found = COMMAND_LINE.parse([*REQUIRED, "--shutdown-drain-timeout-ms=50"], {})
    try:
        return await lifecycle._run(found, {})
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().remove_signal_handler(number)


def terminate(_application: FakeApplication) -> None:
    signal.raise_signal(signal.SIGTERM)


async def test_a_signal_ends_with_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    assert await run(monkeypatch, terminate) == 0


async def test_a_shutdown_without_end_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StartupError, match="graceful shutdown timed out after 50 ms"):
        await run(monkeypatch, terminate, asyncio.Event().wait)


async def test_a_failed_task_shuts_down_and_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    drained: list[bool] = []

    async def drain() -> None:
        drained.append(True)

    with pytest.raises(StartupError, match="critical task"):
        await run(monkeypatch, lambda application: application.tasks.failed.set_result("critical task"), drain)
    assert drained


async def test_a_signal_during_the_start_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(*_arguments: object) -> None:
        signal.raise_signal(signal.SIGTERM)
        await asyncio.Event().wait()

    monkeypatch.setattr(lifecycle, "start", never)
    try:
        assert await lifecycle._run(COMMAND_LINE.parse(REQUIRED, {}), {}) == 0
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().remove_signal_handler(number)
