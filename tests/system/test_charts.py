"""A real router with the arguments and the environment that the charts of the reference give it.

Only ports, addresses and paths of files are others, since many start on one machine.
"""

import asyncio
import http.client
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import grpc
import grpc.aio
import pytest

from certs import make_self_signed
from llm_request_router import programs
from llm_request_router.testing import Process
from llm_request_router.testing.system import Ports
from support.charts import BARE_ADDRESS, CONFIG_FILE, CREDENTIALS_FILE, ROWS, Row
from support.name_server import name_server_in_a_thread
from tunnel_protocol.control import stargate_pb2 as pb
from tunnel_protocol.control import stargate_pb2_grpc

pytestmark = pytest.mark.loop("grpc")

AT_A_TIME = 4
START_S = 60.0
ROWS_OF_A_TEST = 5
PARTS = [
    (f"{chart} from {first}", rows[first : first + ROWS_OF_A_TEST])
    for chart in sorted({row.chart for row in ROWS})
    for rows in [[row for row in ROWS if row.chart == chart]]
    for first in range(0, len(rows), ROWS_OF_A_TEST)
]
POD = {"POD_NAME": "llm-request-router-0", "POD_NAMESPACE": "nvcf", "POD_IP": "127.0.0.1"}


class Place:
    """What a pod has around it, on this machine: files, the worker authentication service, and the name server."""

    def __init__(self, directory: Path, auth: str, name_server: tuple[str, int]) -> None:
        self.directory = directory
        identity = make_self_signed(["*.llm-request-router-headless.nvcf.svc.cluster.local"])
        texts = {
            "secrets.json": b'{"nvcfApiToken": "t"}',
            "lb-config.json": b'{"default": "round-robin"}',
            "tls.crt": identity.cert_pem,
            "tls.key": identity.key_pem,
        }
        for name, content in texts.items():
            (directory / name).write_bytes(content)
        self._values = {
            "--listen-addr": "127.0.0.1:0",
            "--http-listen-addr": "127.0.0.1:0",
            "--reverse-tunnel-listen-addr": "127.0.0.1:0",
            "--advertise-addr": "127.0.0.1:0",
            "--metrics-port": "0",
            "--worker-auth-endpoint": auth,
            "--secrets-path": str(directory / "secrets.json"),
            "--lb-config-path": str(directory / "lb-config.json"),
            "--tls-cert-path": str(directory / "tls.crt"),
            "--tls-key-path": str(directory / "tls.key"),
        }
        host, port = name_server
        self._name_server = f"{host}:{port}"

    def start(self, number: int, row: Row, **environment: str) -> tuple[Process, Path]:
        """The router of `row` in this place; its process and its ports file."""
        words = []
        for word in row.arguments:
            flag, equals, value = word.partition("=")
            for name, text in POD.items():
                value = value.replace(f"$({name})", text)
            words.append(f"{flag}={self._values.get(flag, value)}" if equals else flag)
        ports_file = self.directory / f"{number}.ports.json"
        words += ["--model-discovery-listen-addr=127.0.0.1:0", f"--dns-nameserver={self._name_server}"]
        found = {**programs.environment(os.environ), **POD, **environment, "STARGATE_PORTS_FILE": str(ports_file)}
        return Process(f"router-{number}", [*programs.command("router"), *words], self.directory, found), ports_file


@asynccontextmanager
async def a_place(directory: Path) -> AsyncIterator[Place]:
    service = grpc.aio.server()
    port = service.add_insecure_port("127.0.0.1:0")
    await service.start()
    with name_server_in_a_thread() as server:
        try:
            yield Place(directory, f"http://127.0.0.1:{port}", server.address)
        finally:
            await service.stop(None)


@contextmanager
def ending(process: Process) -> Iterator[None]:
    try:
        yield
    finally:
        process.kill()


def status_of(address: str, path: str) -> int:
    connection = http.client.HTTPConnection(address, timeout=20)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    finally:
        connection.close()


async def watched(ports: Ports) -> pb.WatchStargatesResponse:
    async with grpc.aio.insecure_channel(ports.grpc) as channel:
        stub = stargate_pb2_grpc.StargateControlPlaneStub(channel)  # type: ignore[no-untyped-call]  # generated
        call = stub.WatchStargates(pb.WatchStargatesRequest())
        async with asyncio.timeout(20):
            found: pb.WatchStargatesResponse = await call.read()
        call.cancel()
        return found


def given(row: Row, flag: str) -> list[str]:
    return [word.partition("=")[2] for word in row.arguments if word.startswith(f"{flag}=")]


async def starts_and_serves(place: Place, number: int, row: Row) -> None:
    """Workers can watch, probes are those of the row, and what workers are told has the addresses of the row."""
    process, ports_file = place.start(number, row)
    with ending(process):
        ports = await asyncio.to_thread(process.until, lambda: Ports.read(ports_file), "it serves", START_S)
        watch = await watched(ports)
        assert await asyncio.to_thread(status_of, ports.http, "/healthz") == 200
        assert await asyncio.to_thread(status_of, ports.http, "/readyz") == (503 if row.warms_up else 200)
        own = watch.stargates[0]
        discovery = "--disable-dns-discovery" not in row.arguments
        assert own.stargate_id == POD["POD_NAME"]
        assert own.grpc_pylon_dial_addr == "".join(given(row, "--grpc-pylon-dial-addr"))
        assert sorted(watch.watch_stargate_urls) == sorted(given(row, "--remote-stargate-url"))
        template = given(row, "--advertised-hostname-template")[0]
        host = template.format(pod_name=POD["POD_NAME"], namespace=POD["POD_NAMESPACE"]) if discovery else "127.0.0.1"
        assert own.advertise_addr == f"{host}:{ports.grpc.rpartition(':')[2]}"
        assert (ports.reverse_tunnel is not None) == ("--backend-connectivity=reverse" in row.arguments)
        levels = {line.split()[1] for line in process.log().splitlines() if len(line.split()) > 1}
        assert "ERROR" not in levels


@pytest.mark.parametrize("rows", [rows for _, rows in PARTS], ids=[name for name, _ in PARTS])
async def test_a_router_starts_with_the_arguments_of_a_chart_and_answers_before_it_is_ready(
    rows: list[Row], tmp_path: Path
) -> None:
    free = asyncio.Semaphore(AT_A_TIME)
    failed: list[str] = []

    async def one(number: int, row: Row) -> None:
        async with free:
            try:
                await starts_and_serves(place, number, row)
            except Exception as error:  # noqa: BLE001 - reported below, with the row it belongs to
                failed.append(f"{row.chart}, {row.values}: {error!r}")

    async with a_place(tmp_path) as place:
        await asyncio.gather(*(one(number, row) for number, row in enumerate(rows)))
    assert not failed, "\n\n".join(failed)


async def test_a_chart_with_a_bare_dial_address_needs_the_older_release_line(tmp_path: Path) -> None:
    async with a_place(tmp_path) as place:
        refused, _ = place.start(0, BARE_ADDRESS)
        served, ports_file = place.start(1, BARE_ADDRESS, STARGATE_COMPAT="0.11")
        with ending(refused), ending(served):
            assert await asyncio.to_thread(refused.wait, START_S) == 1
            assert "Error: Pylon gRPC dial address must be an explicit http:// or https:// URI" in refused.log()
            ports = await asyncio.to_thread(served.until, lambda: Ports.read(ports_file), "it serves", START_S)
            assert await asyncio.to_thread(status_of, ports.http, "/readyz") == 200
            own = (await watched(ports)).stargates[0]
            assert [own.grpc_pylon_dial_addr] == given(BARE_ADDRESS, "--grpc-pylon-dial-addr")


@pytest.mark.parametrize("row", [CREDENTIALS_FILE, CONFIG_FILE], ids=lambda row: row.values)
async def test_a_chart_whose_feature_must_not_be_ignored_ends_with_a_usage_error(row: Row, tmp_path: Path) -> None:
    async with a_place(tmp_path) as place:
        process, _ = place.start(0, row)
        with ending(process):
            assert await asyncio.to_thread(process.wait, START_S) == 2
            assert "is not supported yet" in process.log()
