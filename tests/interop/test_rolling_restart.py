"""Routers that are replaced one after another under load, as a Deployment does it: no client notices."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.kubernetes_api import ApiInThread
from support.kubernetes_stack import DoorProcess, RouterPod
from support.processes import OUR_WORKER, Stack, worker_arguments
from support.steady_clients import SteadyClients
from support.tcp_balancer import BalancerInThread
from support.waiting import wait_until

HOSTS = ("127.0.0.2", "127.0.0.3", "127.0.0.4")
CLIENTS = 24
LAME_DUCK_MS = 1_500
RECOMMENDED = (
    f"--lame-duck-ms={LAME_DUCK_MS}",
    "--readiness-warmup-ms=60000",
    "--readiness-stabilization-sample-interval-ms=100",
    "--readiness-stabilization-window=5",
)
"""What docs/operations.md advises, the times of the readiness in shorter form."""


@pytest.fixture
def api(tmp_path: Path) -> Iterator[ApiInThread]:
    found = ApiInThread(tmp_path)
    yield found
    found.stop()


@pytest.fixture(params=["ours", "reference"])
def worker(request: pytest.FixtureRequest) -> tuple[str, ...]:
    return OUR_WORKER if request.param == "ours" else (request.getfixturevalue("pylon"),)


@pytest.mark.parametrize("signal_first", [False, True], ids=["slice-first", "signal-first"])
def test_a_rolling_restart_of_three_routers_is_not_seen_by_a_client(
    stack: Stack, api: ApiInThread, worker: tuple[str, ...], signal_first: bool
) -> None:
    engine = stack.engine()
    door = DoorProcess(stack, api)

    def start(index: int, generation: int, like: RouterPod | None = None) -> RouterPod:
        name = f"router-{index}-{generation}"
        pod = RouterPod(stack, name, door.grpc, door_quic=door.quic, host=HOSTS[index], like=like, extra=RECOMMENDED)
        api.call(api.api.apply(pod.slice))
        return pod

    pods = [start(index, 0) for index in range(len(HOSTS))]
    for number in range(2):
        arguments = worker_arguments(engine, door.grpc, worker_id=f"w{number}")
        stack.start(f"worker-{number}", [*worker, *arguments])
    balancing = BalancerInThread([(pod.host, pod.http) for pod in pods])
    balancer = balancing.balancer
    try:
        wait_until(lambda: len(balancer.ready) == len(pods), 90, "all routers are ready")
        clients = SteadyClients(balancer.port, CLIENTS)
        try:
            wait_until(lambda: clients.complete > CLIENTS, 60, "all clients are served")
            for index, pod in enumerate(pods):
                address = pod.host, pod.http
                if signal_first:
                    pod.process.signal(signal.SIGTERM)
                    wait_until(lambda pod=pod: pod.readyz() != 200, 5, "it is draining")  # type: ignore[misc]
                    api.call(api.api.apply(pod.terminating_slice))
                else:
                    api.call(api.api.apply(pod.terminating_slice))
                    pod.process.signal(signal.SIGTERM)
                assert pod.process.wait(60) == 0
                assert address not in balancer.ready
                api.call(api.api.delete(pod.name))
                start(index, 1, like=pod)
                wait_until(lambda address=address: address in balancer.ready, 90, "the new one is ready")  # type: ignore[misc]
                before = clients.complete
                wait_until(lambda before=before: clients.complete > before + CLIENTS, 60, "clients are served")  # type: ignore[misc]
        finally:
            clients.stop()
        assert set(clients.outcomes) == {"complete"}, (clients.outcomes, balancer.refused, balancer.unserved)
        assert balancer.unserved == 0
    finally:
        balancing.stop()
