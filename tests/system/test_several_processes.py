"""A router of two processes: real processes with real workers, that share two ports and nothing else."""

import http.client
import json
import os
import signal
import socket
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import grpc
import pytest

from llm_request_router import programs
from llm_request_router.testing import Process, ProcessEndedError, System
from support.waiting import wait_until
from tunnel_protocol.control import stargate_pb2, stargate_pb2_grpc

MODEL = "tiny"
TWO = "--processes=2"


def document(system: System) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((system.directory / "router.ports.json").read_text())
    return found


def processes(system: System) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = document(system)["processes"]
    return found


def samples(address: str) -> dict[str, float]:
    connection = http.client.HTTPConnection(address, timeout=10)
    try:
        connection.request("GET", "/metrics/all")
        lines = connection.getresponse().read().decode().splitlines()
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[:1] != "#")}
    except OSError:
        return {}
    finally:
        connection.close()


def routable(system: System, count: int = 1) -> bool:
    """Whether every process can route to this many workers."""
    return all(
        samples(one["metrics"]).get(f'stargate_active_inference_servers{{model="{MODEL}",routing_key=""}}') == count
        for one in processes(system)
    )


def router(directory: Path, *options: str) -> Process:
    """A router of its own with these options instead of those of the harness."""
    usual = {
        "--stargate-id": "r",
        "--advertise-addr": "127.0.0.1:0",
        "--listen-addr": "127.0.0.1:0",
        "--model-discovery-listen-addr": "127.0.0.1:0",
        "--http-listen-addr": "127.0.0.1:0",
        "--metrics-port": "0",
        "--stargate-discovery-dns-name": "x",
    }
    given = {option.partition("=")[0] for option in options}
    words = [f"{flag}={value}" for flag, value in usual.items() if flag not in given]
    command = [*programs.command("router"), *words, "--disable-dns-discovery", "--quic-insecure", *options]
    return Process("other", command, directory, programs.environment(os.environ))


class Client:
    """A connection of the shared HTTP port, and which process has it."""

    def __init__(self, system: System) -> None:
        self._system = system
        self._response: http.client.HTTPResponse | None = None
        self.connection = http.client.HTTPConnection(system.ports.http, timeout=20)
        self.connection.request("GET", "/debug/state")
        state = json.loads(self.connection.getresponse().read())
        self.process: str = state["config"]["stargate_id"]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        if self._response is not None:
            self._response.close()
        self.connection.close()

    def stream(self, tokens: int) -> http.client.HTTPResponse:
        body = {"model": MODEL, "stream": True, "max_tokens": tokens, "messages": [{"role": "user", "content": "hi"}]}
        headers = {**self._system.headers(MODEL), "content-type": "application/json"}
        self.connection.request("POST", "/v1/chat/completions", json.dumps(body).encode(), headers)
        response = self._response = self.connection.getresponse()
        assert response.status == 200
        assert response.readline().startswith(b"data: ")
        return response


def process_of_a_new_connection(system: System) -> str:
    with Client(system) as client:
        return client.process


@pytest.fixture
def clients() -> Iterator[ExitStack]:
    """Closes the connections of the test at its end."""
    with ExitStack() as stack:
        yield stack


def clients_of_both(system: System, clients: ExitStack, each: int) -> list[Client]:
    """As many connections to each of the two processes; the kernel spreads them by their addresses."""
    found: dict[str, list[Client]] = {"test-router-0": [], "test-router-1": []}
    for _ in range(200):
        client = clients.enter_context(Client(system))
        if len(found[client.process]) < each:
            found[client.process].append(client)
        if all(len(of_one) == each for of_one in found.values()):
            return [client for of_one in found.values() for client in of_one]
    raise AssertionError("one process got no connections")


@pytest.fixture(scope="module")
def two() -> Iterator[System]:
    """Two processes and a worker that is routable in both, for tests that leave them as they are."""
    with System.start(TWO) as system:
        system.add_worker(MODEL)
        wait_until(lambda: routable(system))
        yield system


def test_the_ports_file_names_the_processes_and_the_shared_ports(two: System) -> None:
    found = document(two)
    first, second = found["processes"]
    assert (first["stargate_id"], second["stargate_id"]) == ("test-router-0", "test-router-1")
    assert found["pid"] == two.router.pid
    assert len({found["pid"], first["pid"], second["pid"]}) == 3
    own = [one[name] for one in (first, second) for name in ("grpc", "reverse_tunnel", "metrics")]
    assert len({*own, found["http"], found["model_discovery"], found["metrics"]}) == 9
    assert found["grpc"] == first["grpc"]
    assert first["metrics"].startswith("127.0.0.1:")


def test_workers_are_told_both_processes(two: System) -> None:
    expected = {one["stargate_id"]: one["grpc"] for one in processes(two)}
    for one in processes(two):
        with grpc.insecure_channel(one["grpc"]) as channel:
            watch = stargate_pb2_grpc.StargateControlPlaneStub(channel).WatchStargates(
                stargate_pb2.WatchStargatesRequest(), timeout=20
            )
            told = next(seen for seen in watch if len(seen.stargates) == 2)
        assert {stargate.stargate_id: stargate.advertise_addr for stargate in told.stargates} == expected
        assert {stargate.http_advertise_addr for stargate in told.stargates} == {two.ports.http}


def test_a_worker_that_knows_one_process_serves_through_both(two: System, clients: ExitStack) -> None:
    for client in clients_of_both(two, clients, 1):
        assert b"data: [DONE]" in client.stream(3).read()


def test_both_processes_answer_model_discovery_on_one_port(two: System) -> None:
    for _ in range(8):
        with grpc.insecure_channel(two.ports.model_discovery, [("grpc.use_local_subchannel_pool", 1)]) as channel:
            stub = stargate_pb2_grpc.StargateModelDiscoveryStub(channel)
            assert list(stub.ListModels(stargate_pb2.ListModelsRequest(), timeout=10).model_ids) == [MODEL]


def test_the_metrics_port_serves_the_sum(two: System, clients: ExitStack) -> None:
    for client in clients_of_both(two, clients, 2):
        client.stream(3).read()
    finished = [name for name in two.metrics() if name.startswith("stargate_requests_total{") and '"200"' in name]
    assert len(finished) == 1
    pages = [samples(one["metrics"]) for one in processes(two)]
    together = two.metrics()
    assert all(page[finished[0]] >= 2 for page in pages)
    assert together[finished[0]] == sum(page[finished[0]] for page in pages)
    buckets = [name for name in pages[0] if name.startswith("stargate_proxy_duration_seconds_")]
    assert len(buckets) > 10
    for name in buckets:
        assert together[name] == pytest.approx(sum(page[name] for page in pages))
    target = f'{{model="{MODEL}",routing_key=""}}'
    assert together[f"stargate_active_inference_servers{target}"] == 1
    assert together["stargate_reverse_tunnels_up"] == together["stargate_registered_streams"] == 2
    assert together["stargate_discovery_routers"] == 2
    assert together['stargate_process_up{stargate_id="test-router-1"}'] == 1
    contract = two.metrics(additional=False)
    assert contract[finished[0]] == together[finished[0]]
    assert "stargate_reverse_tunnels_up" not in contract
    assert not any("process" in name for name in contract)


def test_the_explain_page_is_that_of_one_process(two: System) -> None:
    for number, expected in (("", "test-router-0"), ("&process=1", "test-router-1")):
        found = two.request("GET", f"/explain?model={MODEL}{number}", address=two.metrics_address)
        assert (found.status, found.headers["x-stargate-id"]) == (200, expected)
        assert json.loads(found.body)["outcome"]["kind"] == "chosen"
    assert two.request("GET", f"/explain?model={MODEL}&process=2", address=two.metrics_address).status == 400
    assert two.request("GET", "/nothing", address=two.metrics_address).status == 404
    assert two.request("POST", "/metrics", address=two.metrics_address).status == 405


def test_every_line_of_the_log_says_which_process_wrote_it(two: System) -> None:
    wait_until(lambda: "all processes serve" in two.router.log())
    lines = Counter(line.rpartition("stargate_id=")[2].split()[0] for line in two.router.log().splitlines())
    assert set(lines) == {"test-router", "test-router-0", "test-router-1"}


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("listener", ["HTTP", "model-discovery"])
def test_another_router_finds_the_shared_ports_in_use(two: System, tmp_path: Path, listener: str, count: int) -> None:
    option = "--http-listen-addr" if listener == "HTTP" else "--model-discovery-listen-addr"
    given = f"{option}={two.ports.http if listener == 'HTTP' else two.ports.model_discovery}"
    other = router(tmp_path, f"--processes={count}", given)
    assert other.wait(20) == 1
    assert f"Error: failed to bind {listener} listener" in other.log()
    assert f"Option: {given}" in other.log()


def test_a_killed_process_costs_its_own_streams_only_and_is_started_again(clients: ExitStack) -> None:
    with System.start(TWO) as system:
        system.add_worker(MODEL, engine_options=["--num-tokens", "400", "--token-delay-ms", "20"])
        wait_until(lambda: routable(system))
        streams = [(client, client.stream(400)) for client in clients_of_both(system, clients, 3)]
        first, second = processes(system)
        lag = "stargate_event_loop_lag_seconds_count"
        wait_until(lambda: samples(second["metrics"]).get(lag))  # it is sampled, and may not be there yet
        before = samples(second["metrics"])
        counted = system.metrics()
        os.kill(second["pid"], signal.SIGKILL)
        wait_until(lambda: not running(second["pid"]))
        for client, stream in streams:
            if client.process == second["stargate_id"]:
                with pytest.raises((http.client.IncompleteRead, ConnectionError)):
                    stream.read()
        for _ in range(20):
            reached = process_of_a_new_connection(system)
            assert reached == first["stargate_id"] or processes(system)[1]["pid"] != second["pid"]
        for client, stream in streams:
            if client.process == first["stargate_id"]:
                assert b"data: [DONE]" in stream.read()
        wait_until(lambda: processes(system)[1]["pid"] not in (None, second["pid"]))
        assert processes(system)[0]["pid"] == first["pid"]
        wait_until(lambda: routable(system))
        for client in clients_of_both(system, clients, 1):
            assert client.stream(3).status == 200
        after = system.metrics()
        assert after['stargate_process_restarts_total{stargate_id="test-router-1"}'] == 1
        assert before[lag] > 0
        assert after[lag] > counted[lag]
        assert all(
            after[name] >= value for name, value in counted.items() if name.endswith(("_total", "_count", "_bucket"))
        )


def test_the_end_of_all_is_that_of_one_router(clients: ExitStack) -> None:
    with System.start(TWO) as system:
        system.add_worker(MODEL, engine_options=["--num-tokens", "60", "--token-delay-ms", "20"])
        wait_until(lambda: routable(system))
        streams = [client.stream(60) for client in clients_of_both(system, clients, 1)]
        system.router.send(signal.SIGTERM)
        for stream in streams:
            assert b"data: [DONE]" in stream.read()
        assert system.router.wait() == 0
        log = system.router.log()
        assert log.count("stargate stopped cleanly") == 3
        assert "ERROR" not in log


def test_all_processes_are_lame_ducks_together() -> None:
    with System.start(TWO, "--lame-duck-ms=3000") as system:
        system.add_worker(MODEL)
        wait_until(lambda: routable(system))
        system.router.send(signal.SIGTERM)
        for stargate_id in ("test-router-0", "test-router-1"):
            system.router.until_logged(f"Entering draining mode stargate_id={stargate_id}")
        for _ in range(6):
            assert system.request("GET", "/readyz").status == 503
        assert system.chat(MODEL).status == 200
        assert system.metrics()["stargate_draining"] == 1
        assert system.router.wait() == 0


def test_a_drain_that_takes_too_long_ends_with_one(clients: ExitStack) -> None:
    with System.start(TWO, "--shutdown-drain-timeout-ms=500") as system:
        system.add_worker(MODEL, engine_options=["--num-tokens", "1000", "--token-delay-ms", "20"])
        wait_until(lambda: routable(system))
        stream = clients.enter_context(Client(system)).stream(1_000)
        began = time.monotonic()
        system.router.send(signal.SIGTERM)
        assert system.router.wait() == 1
        assert time.monotonic() - began < 4
        with pytest.raises((http.client.IncompleteRead, ConnectionError)):
            stream.read()


def test_a_second_signal_ends_all_at_once(clients: ExitStack) -> None:
    with System.start(TWO) as system:
        system.add_worker(MODEL, engine_options=["--num-tokens", "1000", "--token-delay-ms", "20"])
        wait_until(lambda: routable(system))
        stream = clients.enter_context(Client(system)).stream(1_000)
        pids = [one["pid"] for one in processes(system)]
        system.router.send(signal.SIGTERM)
        system.router.until_logged("Entering draining mode")
        system.router.send(signal.SIGTERM)
        assert system.router.wait(5) == 1
        with pytest.raises((http.client.IncompleteRead, ConnectionError)):
            stream.read()
        wait_until(lambda: not any(running(pid) for pid in pids))


def running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_processes_do_not_outlive_their_supervisor() -> None:
    with System.start(TWO) as system:
        pids = [one["pid"] for one in processes(system)]
        system.router.send(signal.SIGKILL)
        wait_until(lambda: not any(running(pid) for pid in pids))


def test_a_process_that_is_not_ready_closes_its_shared_ports_and_opens_them_again() -> None:
    with System.start(TWO, "--readiness-warmup-ms=2000") as system:
        # None is ready: they answer as one router that is not ready does.
        assert system.request("GET", "/readyz").status in (200, 503)
        assert system.request("GET", "/healthz").status == 200
        wait_until(lambda: system.request("GET", "/readyz").status == 200)
        first, second = processes(system)
        wait_until(
            lambda: {process_of_a_new_connection(system) for _ in range(8)} == {"test-router-0", "test-router-1"}
        )
        # A process that warms up after its restart is not ready, while the other one is.
        os.kill(second["pid"], signal.SIGKILL)
        wait_until(lambda: processes(system)[1]["pid"] not in (None, second["pid"]))
        restarted = processes(system)[1]
        warming = 'stargate_not_ready{reason="warming_up"}'
        # The supervisor learns within a second which processes are ready.
        wait_until(
            lambda: (
                {process_of_a_new_connection(system) for _ in range(10)} == {first["stargate_id"]}
                or not samples(restarted["metrics"])[warming]
            )
        )
        while samples(restarted["metrics"])[warming]:
            asked = {process_of_a_new_connection(system) for _ in range(10)}
            assert asked == {first["stargate_id"]} or not samples(restarted["metrics"])[warming]
        wait_until(
            lambda: {process_of_a_new_connection(system) for _ in range(8)} == {"test-router-0", "test-router-1"}
        )


def test_hangup_reaches_every_process() -> None:
    with System.start(TWO) as system:
        system.router.send(signal.SIGHUP)
        for stargate_id in ("test-router-0", "test-router-1"):
            system.router.until_logged(f"reload requested stargate_id={stargate_id}")
        assert system.request("GET", "/readyz").status == 200


def free_ports(count: int) -> int:
    """The first of so many neighbouring TCP and UDP ports that nobody has, below those that the kernel gives to anybody."""
    for first in range(20_000 + os.getpid() % 1_000 * 10, 32_000, 10):
        with ExitStack() as stack:
            try:
                for port in range(first, first + count):
                    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                        one = stack.enter_context(socket.socket(socket.AF_INET, kind))
                        one.bind(("127.0.0.1", port))
            except OSError:
                continue
            return first
    raise AssertionError("no free ports")


def test_explicit_ports_are_those_of_the_options_plus_the_number_of_the_process(tmp_path: Path) -> None:
    first = free_ports(4)
    ports_file = tmp_path / "ports.json"
    process = router(
        tmp_path,
        TWO,
        f"--advertise-addr=127.0.0.1:{first}",
        f"--listen-addr=127.0.0.1:{first}",
        "--backend-connectivity=reverse",
        f"--reverse-tunnel-listen-addr=127.0.0.1:{first + 2}",
        "--advertised-hostname-template=127.0.0.1",
        f"--ports-file={ports_file}",
    )
    try:
        process.until(ports_file.exists, "it told its ports", 30)
        found = json.loads(ports_file.read_text())["processes"]
        assert [one["grpc"] for one in found] == [f"127.0.0.1:{first}", f"127.0.0.1:{first + 1}"]
        assert [one["reverse_tunnel"] for one in found] == [f"127.0.0.1:{first + 2}", f"127.0.0.1:{first + 3}"]
    finally:
        process.stop()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--advertised-hostname-template={pod_name}.x"], "is not possible with {pod_name}"),
        (["--lb-config-path=/none/lb.json"], "failed to read lb config file: /none/lb.json"),
        (["--proxy-retry-budget-header=a b"], "invalid proxy retry budget header"),
    ],
)
def test_a_start_that_fails_ends_with_one_and_says_why_once(options: list[str], text: str) -> None:
    with pytest.raises(ProcessEndedError) as caught:
        System.start(TWO, *options, reverse=False)
    assert "ended with 1 before" in str(caught.value)
    assert caught.value.log.count(f"Error: {text}" if "pod_name" not in text else text) == 1
    assert "Traceback" not in caught.value.log


def test_a_signal_during_the_start_is_a_clean_end(tmp_path: Path) -> None:
    process = router(tmp_path, TWO, "--worker-auth-endpoint=http://127.0.0.1:9")
    try:
        process.until_logged("starting stargate", 30)
        process.until_logged("stargate_id=r-0", 30)
        process.send(signal.SIGTERM)
        assert process.wait() == 0
    finally:
        process.kill()


def test_one_process_is_what_it_was() -> None:
    with System.start("--processes=1") as system:
        assert "processes" not in document(system)
        assert document(system)["pid"] == system.router.pid
        children = Path(f"/proc/{system.router.pid}/task/{system.router.pid}/children").read_text()
        assert children == ""
        assert "router/supervisor" not in Path(f"/proc/{system.router.pid}/maps").read_text()
        assert " INFO graceful" not in system.router.log()
