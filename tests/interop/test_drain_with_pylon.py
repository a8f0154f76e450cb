"""A drain of our router lets the reference's worker finish what it streams, longer than the worker itself would wait."""

import signal

import pytest

from support.processes import OURS, Stack, worker_arguments
from support.waiting import wait_until

pytestmark = pytest.mark.interop

WORKER_WAITS_S = 5
"""The reference's worker gives its running requests this long once its registration or the watch stream has ended."""


@pytest.mark.parametrize("direct", [False, True])
def test_a_stream_longer_than_the_workers_patience_survives_the_drain(stack: Stack, pylon: str, direct: bool) -> None:
    engine = stack.engine()
    router = stack.router(OURS, direct=direct)
    stack.start("pylon", [pylon, *worker_arguments(engine, router.grpc, direct=direct)])
    wait_until(router.serves, 20, "a request is served")
    tokens = (WORKER_WAITS_S + 2) * 10
    answer = router.begin_chat(tokens=tokens, delay_ms=100, timeout_s=15)
    answer.read_line()
    router.process.signal(signal.SIGTERM)
    answer.read_rest()
    assert len(answer.tokens) == tokens + 1
    assert answer.tokens[-1] == "[DONE]"
    assert router.process.wait() == 0
