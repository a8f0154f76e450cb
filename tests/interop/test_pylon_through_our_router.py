"""The unmodified worker of the reference registers with our router, dials it, serves through it, and comes back to it."""

import http.client
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from support.name_server import name_server_in_a_thread
from support.processes import OURS, EngineProcess, LoggedProcess, RouterProcess, Stack, free_ports, worker_arguments
from support.relay import TcpRelay, UdpRelay
from support.waiting import wait_until

pytestmark = pytest.mark.interop

OUT_OF_ROUTING_S = 3.0
UPDATE_INTERVAL_S = 0.2


def start_pylon(
    stack: Stack, pylon: str, engine: EngineProcess, port: int, *, worker_id: str = "w1", name: str = ""
) -> LoggedProcess:
    return stack.start(name or f"pylon-{worker_id}", [pylon, *worker_arguments(engine, port, worker_id=worker_id)])


def with_canaries(arguments: list[str]) -> list[str]:
    """The same worker, which also tries its engine every quarter of a second."""
    kept = [one for one in arguments if one not in ("--disable-bringup", "--active-canary-interval-ms=0")]
    return [*kept, "--active-canary-interval-ms=250", "--bringup-canary-timeout-ms=1000"]


def served(router: RouterProcess, within_s: float = 20) -> float:
    return wait_until(router.serves, within_s, "a request is served")


def test_a_chat_request_streams_through_and_names_the_worker_that_served_it(stack, pylon):
    engine = stack.engine()
    router = stack.router(OURS)
    start_pylon(stack, pylon, engine, router.grpc)
    served(router)
    answer = router.chat(tokens=5)
    assert answer.status == 200
    assert answer.tokens == ["t0 ", "t1 ", "t2 ", "t3 ", "t4 ", "[DONE]"]
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["x-inference-server-id"] == "w1"
    assert answer.headers["x-stargate-cluster-id"] == "w1"
    assert "x-inference-server-url" in answer.headers
    wait_until(lambda: "reverse tunnel connection established" in router.process.log(), 5, "the line of the tunnel")


def test_tokens_arrive_one_by_one_and_not_at_the_end(stack, pylon):
    engine = stack.engine()
    router = stack.router(OURS)
    start_pylon(stack, pylon, engine, router.grpc)
    served(router)
    answer = router.begin_chat(tokens=20, delay_ms=200, timeout_s=3)
    assert answer.read_line().startswith(b"data: ")
    answer.close()


def test_concurrent_requests_beyond_the_workers_stream_limit_are_all_served(stack, pylon):
    engine = stack.engine()
    router = stack.router(OURS)
    start_pylon(stack, pylon, engine, router.grpc)
    served(router)
    with ThreadPoolExecutor(120) as callers:
        answers = list(callers.map(lambda _: router.chat(tokens=20, delay_ms=50, timeout_s=30), range(120)))
    assert [answer.status for answer in answers] == [200] * 120
    assert all(len(answer.tokens) == 21 for answer in answers)


def test_heartbeats_do_not_make_a_worker_dial_again(stack, pylon):
    engine = stack.engine()
    router = stack.router(OURS)
    start_pylon(stack, pylon, engine, router.grpc)
    served(router)
    deadline = time.monotonic() + 30 * UPDATE_INTERVAL_S
    while time.monotonic() < deadline:
        assert router.chat().status == 200
        time.sleep(UPDATE_INTERVAL_S)
    assert router.process.log().count("reverse tunnel connection established") == 1


@pytest.mark.parametrize("direct", [False, True])
def test_a_worker_with_failing_canaries_is_unroutable_until_one_succeeds(stack, pylon, direct):
    engine = stack.engine()
    router = stack.router(OURS, direct=direct)
    stack.start("pylon", [pylon, *with_canaries(worker_arguments(engine, router.grpc, direct=direct))])
    wait_until(lambda: router.routable() == 1, 20, "the worker is routable")
    engine.break_down("chat")
    wait_until(lambda: router.routable() == 0, 10, "a failed canary takes the worker out")
    assert router.chat().status == 503
    engine.break_down()
    wait_until(lambda: router.routable() == 1, 10, "a canary that succeeds brings it back")
    served(router, 5)
    log = router.process.log()
    assert log.count("register inference servers stream opened") == 1


def test_a_recovered_canary_does_not_help_while_health_fails(stack, pylon):
    engine = stack.engine()
    router = stack.router(OURS)
    stack.start("pylon", [pylon, *with_canaries(worker_arguments(engine, router.grpc))])
    wait_until(lambda: router.routable() == 1, 20, "the worker is routable")
    engine.break_down("chat", "health")
    wait_until(lambda: router.routable() == 0, 10, "the worker is out of routing")
    engine.break_down("health")
    stays_out_until = time.monotonic() + 4 * UPDATE_INTERVAL_S + 1.5
    while time.monotonic() < stays_out_until:
        assert router.routable() == 0
        time.sleep(UPDATE_INTERVAL_S)
    engine.break_down()
    wait_until(lambda: router.routable() == 1, 10, "health brings it back")
    served(router, 5)


@pytest.mark.parametrize("direct", [False, True])
def test_a_worker_that_knows_one_router_serves_through_all_that_dns_names(stack, pylon, direct):
    engine = stack.engine()
    with name_server_in_a_thread() as server:
        host, port = server.address
        asking = [f"--dns-nameserver={host}:{port}", "--dns-poll-ms=50", "--dns-resolver-ttl-ms=0"]
        one, two = (stack.router(OURS, pod=name, direct=direct, extra=asking) for name in ("r-0", "r-1"))
        stack.start("pylon", [pylon, *worker_arguments(engine, one.grpc, direct=direct)])
        served(one)
        assert not two.serves()
        records = [f"0 0 {router.grpc} {name}.routers.test." for name, router in (("r-0", one), ("r-1", two))]
        server.table = {("_grpc._tcp.routers.test.", "SRV"): records}
        served(two)
        served(one, 5)


def test_two_workers_of_one_model_are_both_used(stack, pylon):
    engine = stack.engine()
    router = stack.router(OURS)
    for worker_id in ("w1", "w2"):
        start_pylon(stack, pylon, engine, router.grpc, worker_id=worker_id)
    wait_until(lambda: router.routable() == 2, 20, "both workers are routable")
    used: set[str] = set()

    def both_used() -> bool:
        used.add(router.chat().headers["x-inference-server-id"])
        return used == {"w1", "w2"}

    wait_until(both_used, 15, "both workers have served")


def test_a_restarted_worker_serves_again_under_its_id(stack, pylon):
    engine = stack.engine()
    router = stack.router(OURS)
    worker = start_pylon(stack, pylon, engine, router.grpc)
    served(router)
    worker.stop()
    wait_until(lambda: router.routable() == 0, OUT_OF_ROUTING_S, "the stopped worker is out of routing")
    start_pylon(stack, pylon, engine, router.grpc, name="pylon-again")
    served(router)


def test_a_killed_worker_is_out_of_routing_at_once_and_its_id_is_free(stack, pylon):
    engine = stack.engine()
    router = stack.router(OURS)
    worker = start_pylon(stack, pylon, engine, router.grpc)
    served(router)
    worker.signal(signal.SIGKILL)
    wait_until(lambda: router.routable() == 0, OUT_OF_ROUTING_S, "the killed worker is out of routing")
    start_pylon(stack, pylon, engine, router.grpc, name="pylon-again")
    served(router)


def test_a_response_cut_by_the_death_of_its_worker_ends_abnormally_and_soon(stack, pylon):
    engine = stack.engine()
    router = stack.router(OURS)
    worker = start_pylon(stack, pylon, engine, router.grpc)
    served(router)
    answer = router.begin_chat(tokens=1_000, delay_ms=50, timeout_s=12)
    assert answer.status == 200
    answer.read_line()
    worker.signal(signal.SIGKILL)
    with pytest.raises((http.client.IncompleteRead, ConnectionError)):
        answer.read_rest()


def test_a_frozen_worker_leaves_routing_within_three_seconds_and_returns_when_it_thaws(stack, pylon):
    engine = stack.engine()
    router = stack.router(OURS)
    worker = start_pylon(stack, pylon, engine, router.grpc)
    served(router)
    worker.signal(signal.SIGSTOP)
    wait_until(lambda: router.routable() == 0, OUT_OF_ROUTING_S + 0.2, "the frozen worker is out of routing")
    worker.signal(signal.SIGCONT)
    wait_until(lambda: router.routable() == 1, 5, "the thawed worker is routable")
    served(router, 2)


def test_a_worker_cut_off_in_udp_only_leaves_routing_and_returns_when_packets_flow_again(stack, pylon):
    engine = stack.engine()
    (quic_port,) = free_ports(1, socket.SOCK_DGRAM)
    with UdpRelay(quic_port) as relay:
        router = stack.router(OURS, quic_port=quic_port, dial_port=relay.port)
        start_pylon(stack, pylon, engine, router.grpc)
        served(router)
        relay.cut = True
        wait_until(lambda: router.routable() == 0, OUT_OF_ROUTING_S + 0.2, "the cut-off worker is out of routing")
        relay.cut = False
        wait_until(lambda: router.routable() == 1, 10, "the worker is routable again")
        served(router, 2)


def test_a_worker_cut_off_in_tcp_only_keeps_serving_and_registers_anew_when_the_connection_breaks(stack, pylon):
    engine = stack.engine()
    (grpc_port,) = free_ports(1)
    with TcpRelay(grpc_port) as relay:
        router = stack.router(OURS, grpc_port=grpc_port, advertise_port=relay.port)
        start_pylon(stack, pylon, engine, relay.port)
        served(router)
        relay.cut = True
        for _ in range(3):
            assert router.chat().status == 200
        relay.cut = False
        relay.sever()
        wait_until(lambda: router.routable() == 1, 15, "the worker is routable again")
        served(router, 5)


@pytest.mark.parametrize(("compat", "scheme"), [("0.18", "http://"), ("0.11", "http://"), ("0.11", "")])
def test_a_worker_dials_the_address_it_is_told_for_grpc(stack, pylon, compat, scheme):
    engine = stack.engine()
    (grpc_port,) = free_ports(1)
    with TcpRelay(grpc_port) as relay:
        dial = f"--grpc-pylon-dial-addr={scheme}127.0.0.1:{relay.port}"
        router = stack.router(OURS, grpc_port=grpc_port, extra=[dial, f"--compat={compat}"])
        start_pylon(stack, pylon, engine, router.grpc)
        served(router)
        wait_until(lambda: relay.accepted, 5, "the registration came through the front")


def test_of_two_workers_with_one_id_the_first_keeps_it_until_it_goes(stack, pylon):
    engine = stack.engine()
    router = stack.router(OURS)
    first = start_pylon(stack, pylon, engine, router.grpc, name="pylon-first")
    served(router)
    second = start_pylon(stack, pylon, engine, router.grpc, name="pylon-second")
    wait_until(lambda: "already registered" in second.log() + router.process.log(), 15, "the second one is refused")
    for _ in range(3):
        assert router.chat().status == 200
    assert router.process.log().count("reverse tunnel connection established") == 1
    first.stop()
    served(router)
    assert second.running


def test_the_id_of_a_frozen_worker_passes_to_its_successor_which_keeps_it(stack, pylon):
    engine = stack.engine()
    router = stack.router(OURS)
    first = start_pylon(stack, pylon, engine, router.grpc, name="pylon-first")
    served(router)
    first.signal(signal.SIGSTOP)  # its TCP connection stays up, and nobody says goodbye
    start_pylon(stack, pylon, engine, router.grpc, name="pylon-second")
    wait_until(lambda: "taking over the id" in router.process.log(), 8, "the second one takes the id over")
    served(router, 5)
    first.signal(signal.SIGCONT)
    wait_until(lambda: "already registered" in router.process.log(), 10, "the first one is refused its old id")
    for _ in range(3):
        assert router.chat().status == 200
    assert router.routable() == 1


def test_a_worker_that_is_dialled_serves_and_comes_back_after_a_restart(stack, pylon):
    engine = stack.engine()
    router = stack.router(OURS, direct=True)
    arguments = [pylon, *worker_arguments(engine, router.grpc, direct=True)]
    worker = stack.start("pylon", arguments)
    served(router)
    answer = router.chat(tokens=5)
    assert answer.tokens == ["t0 ", "t1 ", "t2 ", "t3 ", "t4 ", "[DONE]"]
    assert answer.headers["x-inference-server-url"].startswith("quic://")
    worker.stop()
    wait_until(lambda: router.routable() == 0, OUT_OF_ROUTING_S, "the stopped worker is out of routing")
    stack.start("pylon-again", arguments)
    served(router)


def test_a_worker_frozen_for_ten_seconds_comes_back_on_the_same_tunnel(stack, pylon):
    engine = stack.engine()
    router = stack.router(OURS)
    worker = start_pylon(stack, pylon, engine, router.grpc)
    served(router)
    answer = router.begin_chat(tokens=100, delay_ms=20, timeout_s=30)
    answer.read_line()
    worker.signal(signal.SIGSTOP)
    time.sleep(10)
    worker.signal(signal.SIGCONT)
    wait_until(lambda: router.routable() == 1, 5, "the thawed worker is routable")
    answer.read_rest()
    assert len(answer.tokens) == 101
    assert router.process.log().count("reverse tunnel connection established") == 1


def test_a_restarted_router_gets_its_workers_back(stack, pylon):
    engine = stack.engine()
    grpc_port, (quic_port,) = free_ports(1)[0], free_ports(1, socket.SOCK_DGRAM)
    router = stack.router(OURS, grpc_port=grpc_port, quic_port=quic_port)
    start_pylon(stack, pylon, engine, router.grpc)
    served(router)
    router.process.stop()
    router = stack.router(OURS, grpc_port=grpc_port, quic_port=quic_port)
    served(router, 40)
