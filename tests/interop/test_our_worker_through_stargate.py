"""Our worker client registers with the unmodified router of the reference and serves through it."""

import signal

import pytest

from support.processes import OUR_WORKER, EngineProcess, LoggedProcess, RouterProcess, Stack, worker_arguments
from support.waiting import wait_until

pytestmark = pytest.mark.interop


def start_worker(
    stack: Stack, engine: EngineProcess, router: RouterProcess, *, worker_id: str = "w1", name: str = ""
) -> LoggedProcess:
    arguments = worker_arguments(engine, router.grpc, worker_id=worker_id)
    return stack.start(name or f"worker-{worker_id}", [*OUR_WORKER, *arguments])


def test_a_chat_request_streams_through(stack, stargate):
    engine = stack.engine()
    router = stack.router((stargate,))
    start_worker(stack, engine, router)
    wait_until(router.serves, 20, "a request is served")
    answer = router.chat(tokens=5)
    assert answer.tokens == ["t0 ", "t1 ", "t2 ", "t3 ", "t4 ", "[DONE]"]
    assert answer.headers["x-inference-server-id"] == "w1"


def test_a_worker_stopped_politely_is_unroutable_at_once_and_may_come_back(stack, stargate):
    engine = stack.engine()
    router = stack.router((stargate,))
    worker = start_worker(stack, engine, router)
    wait_until(router.serves, 20, "a request is served")
    worker.signal(signal.SIGTERM)
    wait_until(lambda: router.routable() == 0, 5, "the stopped worker is out of routing")
    assert worker.wait(10) == 0
    start_worker(stack, engine, router, name="worker-again")
    wait_until(router.serves, 20, "a request is served again")


def test_two_workers_of_one_model_are_both_used(stack, stargate):
    engine = stack.engine()
    router = stack.router((stargate,))
    for worker_id in ("w1", "w2"):
        start_worker(stack, engine, router, worker_id=worker_id)
    wait_until(lambda: router.routable() == 2, 20, "both workers are routable")
    used: set[str] = set()

    def both_used() -> bool:
        used.add(router.chat().headers["x-inference-server-id"])
        return used == {"w1", "w2"}

    wait_until(both_used, 15, "both workers have served")


def test_a_worker_survives_a_restart_of_the_router(stack, stargate):
    engine = stack.engine()
    router = stack.router((stargate,))
    start_worker(stack, engine, router)
    wait_until(router.serves, 20, "a request is served")
    router.process.stop()
    router = stack.router((stargate,), grpc_port=router.grpc, quic_port=router.quic)
    wait_until(router.serves, 40, "a request is served again")
