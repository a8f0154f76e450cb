"""A start that fails, at whatever step, or that is cancelled leaves no socket and no task behind."""

import asyncio
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from router.config.cli import parse
from router.config.settings import Settings
from router.config.startup_checks import StartupError
from router.control_plane.gateway_auth import GatewayAuthenticator
from router.grpc.server import GrpcServer
from router.http1.server import HttpServer
from router.operators.server import OperatorsServer
from router.process import app, live_page, opening, serving
from router.process.policy import Policy
from router.process.reloads import Reloads
from router.tunnels.dialer import DirectDialer
from router.tunnels.listener import ReverseListener
from support.waiting import eventually

pytestmark = pytest.mark.loop("grpc")

STEPS = [
    (app, "check_options"),
    (app.assembly, "key_log"),
    (app.assembly, "check_qlog_dir"),
    (app, "_read_tls"),
    (app.assembly, "authenticator"),
    (ReverseListener, "listen"),
    (app, "check_worker_auth"),
    (opening.ServedIdentity, "load_grpc"),
    (GrpcServer, "bind"),
    (opening, "bind_tcp"),
    (opening, "bind_tcp_everywhere"),
    (app.assembly, "lookup"),
    (GatewayAuthenticator, "connect"),
    (app, "outbound_trust"),
    (DirectDialer, "open"),
    (Policy, "load"),
    (live_page, "ExplainPage"),
    (OperatorsServer, "start"),
    (GrpcServer, "start"),
    (HttpServer, "start"),
    (serving, "write_ports_file"),
]
PER_SERVER = {("bind", 2), ("start", 2)}
"""What is called once per gRPC server fails at the second one too."""


def settings(tmp_path: Path) -> Settings:
    return parse(
        [
            "--stargate-id=r",
            "--advertise-addr=127.0.0.1:1",
            "--stargate-discovery-dns-name=x",
            "--disable-dns-discovery",
            "--backend-connectivity=reverse",
            "--reverse-tunnel-listen-addr=127.0.0.1:0",
            "--listen-addr=127.0.0.1:0",
            "--model-discovery-listen-addr=127.0.0.1:0",
            "--http-listen-addr=127.0.0.1:0",
            "--metrics-port=0",
            "--quic-insecure",
            "--worker-auth-endpoint=http://127.0.0.1:9",
            f"--quic-keylog-path={tmp_path}/keys",
            f"--ports-file={tmp_path}/ports",
        ],
        {},
    )


def bound_sockets() -> set[str]:
    """Listening TCP sockets and UDP sockets of this process, by inode."""
    own = set()
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            own.update(re.findall(r"socket:\[(\d+)\]", str(descriptor.readlink())))
        except OSError:
            continue
    found = set()
    for protocol, states in (("tcp", {"0A"}), ("tcp6", {"0A"}), ("udp", {"07"}), ("udp6", {"07"})):
        for line in Path(f"/proc/net/{protocol}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] in states:
                found.add(fields[9])
    return own & found


@pytest.fixture
def reachable(monkeypatch: pytest.MonkeyPatch) -> None:
    async def connect(_self: GatewayAuthenticator, _timeout_s: float) -> None:
        """The gateway is there."""

    monkeypatch.setattr(GatewayAuthenticator, "connect", connect)


def failing_at(call: int, real: Callable[..., Any]) -> Callable[..., Any]:
    """`real`, but its call number `call` fails."""
    calls = 0

    def step(*given: Any, **more: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            raise StartupError("this step failed")
        return real(*given, **more)

    return step


async def left_by(start: Callable[[], Any]) -> tuple[set[str], set[asyncio.Task[Any]]]:
    sockets, tasks = bound_sockets(), asyncio.all_tasks()
    await start()
    await asyncio.sleep(0)
    # gRPC keeps tasks of its own for a moment after a server has stopped.
    left = {task for task in asyncio.all_tasks() - tasks if "router" in str(task.get_coro())}
    return bound_sockets() - sockets, left


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="asks Linux which sockets are open")
@pytest.mark.parametrize(
    ("where", "name", "call"),
    [(where, name, 1) for where, name in STEPS] + [(GrpcServer, name, call) for name, call in sorted(PER_SERVER)],
    ids=lambda given: getattr(given, "__name__", str(given)).rpartition(".")[2],
)
async def test_a_start_that_fails_closes_what_it_had_opened(
    where: Any, name: str, call: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reachable: None
) -> None:
    monkeypatch.setattr(where, name, failing_at(call, getattr(where, name)))

    async def start() -> None:
        with pytest.raises(StartupError, match="this step failed"):
            await app.start(settings(tmp_path), Reloads())

    assert await left_by(start) == (set(), set())


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="asks Linux which sockets are open")
async def test_a_start_that_is_cancelled_closes_what_it_had_opened(tmp_path: Path) -> None:
    async def start() -> None:
        before = bound_sockets()
        starting = asyncio.create_task(app.start(settings(tmp_path), Reloads()))  # nobody answers for the gateway
        await eventually(lambda: bool(bound_sockets() - before))
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting

    assert await left_by(start) == (set(), set())


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="asks Linux which sockets are open")
async def test_a_drain_closes_what_the_start_had_opened(tmp_path: Path, reachable: None) -> None:
    async def start() -> None:
        router = await app.start(settings(tmp_path), Reloads())
        assert (tmp_path / "ports").exists()
        assert not router.tasks.failed.done()
        assert await router.drain(5)
        assert router.unfinished() == ["0 requests"]
        assert not router.tasks.failed.done()

    assert await left_by(start) == (set(), set())
