"""Workers that know only `stargate-k8s-router` register and tunnel through it to every router: our worker, the reference's."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from certs import make_self_signed
from support.kubernetes_api import ApiInThread
from support.kubernetes_stack import DoorProcess, RouterPod
from support.processes import OUR_WORKER, Stack, StreamedAnswer, worker_arguments
from support.relay import UdpRelay
from support.waiting import wait_until


@pytest.fixture
def api(tmp_path: Path) -> Iterator[ApiInThread]:
    found = ApiInThread(tmp_path)
    yield found
    found.stop()


@pytest.fixture(params=["ours", "reference"])
def worker(request: pytest.FixtureRequest) -> tuple[str, ...]:
    return OUR_WORKER if request.param == "ours" else (request.getfixturevalue("pylon"),)


def publish(api: ApiInThread, *pods: RouterPod) -> None:
    for pod in pods:
        api.call(api.api.apply(pod.slice))


def sample(door: DoorProcess, name: str) -> float:
    """A value of the metrics page."""
    return next(
        float(line.rpartition(" ")[2])
        for line in door.metrics().splitlines()
        if line.startswith(f"stargate_k8s_router_{name} ")
    )


def test_a_worker_registers_with_every_router_and_serves_requests(
    stack: Stack, api: ApiInThread, worker: tuple[str, ...]
) -> None:
    engine = stack.engine()
    door = DoorProcess(stack, api)
    pods = [RouterPod(stack, f"router-{index}", door.grpc, door_quic=door.quic) for index in range(2)]
    stack.start("worker", [*worker, *worker_arguments(engine, door.grpc)])
    assert door.get("/readyz") == 503
    publish(api, *pods)
    for pod in pods:
        wait_until(pod.serves, 30, f"{pod.name} has the worker")
        assert pod.chat().tokens[-1] == "[DONE]"
    assert door.get("/readyz") == 200
    assert "stargate_k8s_router_registrations_open 2\n" in door.metrics()
    # On a busy machine a worker may have dialled more than once.
    assert sample(door, "tunnels_open") >= 2
    assert sample(door, 'quic_connections_total{outcome="accepted"}') >= 2
    assert 'outcome="relay_error"' not in door.metrics()


def test_a_worker_comes_back_through_the_next_replica(stack: Stack, api: ApiInThread, worker: tuple[str, ...]) -> None:
    engine = stack.engine()
    door = DoorProcess(stack, api, extra=["--shutdown-drain-timeout-ms=3000"])
    pod = RouterPod(stack, "router-0", door.grpc, door_quic=door.quic)
    publish(api, pod)
    stack.start("worker", [*worker, *worker_arguments(engine, door.grpc)])
    wait_until(pod.serves, 30, "the router has the worker")
    door.process.signal(signal.SIGTERM)
    assert door.process.wait() == 0
    assert "stargate-k8s-router stopped cleanly" in door.process.log()
    following = DoorProcess(stack, api, "next", like=door)
    wait_until(lambda: "registrations_open 1\n" in following.metrics(), 30, "the worker has registered again")
    wait_until(pod.serves, 60, "the router has the worker again")
    assert sample(following, "tunnels_open") >= 1


# When its registration ends, with the gRPC connection for example, the reference's worker closes its tunnel as soon as the last answer
# ends, so the last message of that one may be lost, also without a relay.


def read_tokens(answer: StreamedAnswer, count: int) -> None:
    while len(answer.tokens) < count:
        assert answer.read_line(), f"the answer was cut off after {len(answer.tokens)} tokens"


def test_a_running_answer_goes_on_during_the_shutdown(stack: Stack, api: ApiInThread, pylon: str) -> None:
    engine = stack.engine()
    door = DoorProcess(stack, api, extra=["--shutdown-drain-timeout-ms=5000"])
    pod = RouterPod(stack, "router-0", door.grpc, door_quic=door.quic)
    publish(api, pod)
    stack.start("worker", [pylon, *worker_arguments(engine, door.grpc)])
    wait_until(pod.serves, 30, "the router has the worker")
    answer = pod.begin_chat(tokens=30, delay_ms=100)
    answer.read_line()
    door.process.signal(signal.SIGTERM)
    read_tokens(answer, 29)
    answer.close()
    assert door.process.wait() == 0
    assert "tunnels are still open" in door.process.log()


def test_a_running_answer_goes_on_through_another_replica_when_one_is_killed(
    stack: Stack, api: ApiInThread, worker: tuple[str, ...]
) -> None:
    engine = stack.engine()
    door = DoorProcess(stack, api)
    other = DoorProcess(stack, api, "other")
    with UdpRelay(door.quic) as service:
        pod = RouterPod(stack, "router-0", door.grpc, door_quic=service.port)
        publish(api, pod)
        wait_until(lambda: other.get("/readyz") == 200, 30, "the other replica knows the router")
        stack.start("worker", [*worker, *worker_arguments(engine, door.grpc)])
        wait_until(pod.serves, 30, "the router has the worker")
        answer = pod.begin_chat(tokens=40, delay_ms=100, timeout_s=20)
        answer.read_line()
        door.process.signal(signal.SIGKILL)
        service.target_port = other.quic
        read_tokens(answer, 35)
        answer.close()
        assert sample(other, 'quic_connections_total{outcome="adopted"}') >= 1


def test_requests_that_run_while_it_drains_are_answered_to_their_end(stack: Stack, api: ApiInThread) -> None:
    """With our worker. The reference's closes its tunnel with the last request, and takes bytes along that are on their way."""
    engine = stack.engine()
    door = DoorProcess(stack, api, extra=["--shutdown-drain-timeout-ms=8000"])
    pod = RouterPod(stack, "router-0", door.grpc, door_quic=door.quic)
    publish(api, pod)
    stack.start("worker", [*OUR_WORKER, *worker_arguments(engine, door.grpc)])
    wait_until(pod.serves, 30, "the router has the worker")
    running = [pod.begin_chat(tokens=30, delay_ms=50) for _ in range(20)]
    assert {answer.status for answer in running} == {200}
    door.process.signal(signal.SIGTERM)
    for answer in running:
        answer.read_rest()
    assert [len(answer.tokens) for answer in running] == [31] * 20
    assert door.process.wait(15) == 0


def test_a_pod_that_comes_back_with_other_ports_is_found(
    stack: Stack, api: ApiInThread, worker: tuple[str, ...]
) -> None:
    engine = stack.engine()
    door = DoorProcess(stack, api)
    pod = RouterPod(stack, "router-0", door.grpc, door_quic=door.quic)
    publish(api, pod)
    stack.start("worker", [*worker, *worker_arguments(engine, door.grpc)])
    wait_until(pod.serves, 30, "the router has the worker")
    pod.process.stop()
    again = RouterPod(stack, "router-0", door.grpc, door_quic=door.quic)
    publish(api, again)
    wait_until(again.serves, 60, "the new pod has the worker")


def test_routers_of_the_reference_work_behind_it(
    stack: Stack, api: ApiInThread, worker: tuple[str, ...], stargate: str
) -> None:
    engine = stack.engine()
    door = DoorProcess(stack, api)
    pod = RouterPod(stack, "router-0", door.grpc, door_quic=door.quic, program=(stargate,))
    publish(api, pod)
    stack.start("worker", [*worker, *worker_arguments(engine, door.grpc)])
    wait_until(pod.serves, 30, "the router has the worker")
    assert pod.chat().tokens[-1] == "[DONE]"


def test_our_worker_registers_over_tls_by_the_identity_of_each_router(
    stack: Stack, api: ApiInThread, tmp_path: Path
) -> None:
    """The certificate is that of the door's address; `:authority`, by which the door routes, is the router's host name."""
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    identity = make_self_signed([], ["127.0.0.1"])
    cert.write_bytes(identity.cert_pem)
    key.write_bytes(identity.key_pem)
    serving = [f"--grpc-tls-cert-path={cert}", f"--grpc-tls-key-path={key}"]
    door = DoorProcess(stack, api, scheme="https", extra=serving)
    pods = [RouterPod(stack, f"router-{index}", door.grpc, door_quic=door.quic) for index in range(2)]
    publish(api, *pods)
    extra = [f"--stargate-address=https://127.0.0.1:{door.grpc}", f"--grpc-tls-ca-cert-path={cert}"]
    worker = stack.start("worker", [*OUR_WORKER, *worker_arguments(stack.engine(), door.grpc, extra=extra)])
    for pod in pods:
        wait_until(pod.serves, 30, f"{pod.name} has the worker")
    assert "stargate_k8s_router_registrations_open 2\n" in door.metrics()
    assert "certificate of a router refused" not in worker.log()
