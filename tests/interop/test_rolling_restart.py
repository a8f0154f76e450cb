"""Three routers are restarted one after the other under load, and no client notices.

Workers come in through `stargate-k8s-router`, which a fake API server tells the pods; clients through a balancer that asks
`/readyz` and retries only refused connects (docs/operations.md, "Rolling restarts").
"""

import http.client
import json
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from threading import Event, Thread

import pytest

from support.balancer import Balancer
from support.kubernetes_api import ApiInThread
from support.kubernetes_stack import DoorProcess, RouterPod
from support.processes import INTEROP_MODEL, OUR_WORKER, Stack, StreamedAnswer, worker_arguments
from support.waiting import wait_until

CLIENTS = 8
SCALED_READINESS = (
    "--readiness-warmup-ms=20000",
    "--readiness-stabilization-sample-interval-ms=100",
    "--readiness-stabilization-window=3",
)


@pytest.fixture
def api(tmp_path: Path) -> Iterator[ApiInThread]:
    found = ApiInThread(tmp_path)
    yield found
    found.stop()


@pytest.fixture(params=["ours", "reference"])
def worker(request: pytest.FixtureRequest) -> tuple[str, ...]:
    return OUR_WORKER if request.param == "ours" else (request.getfixturevalue("pylon"),)


class Load:
    """Clients that send one request after the other, each on a connection of its own."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._over = Event()
        self.ends: Counter[str] = Counter()
        self._threads = [Thread(target=self._ask_again_and_again) for _ in range(CLIENTS)]
        for thread in self._threads:
            thread.start()

    @property
    def answered(self) -> int:
        return self.ends["200"]

    def stop(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(30)

    def _ask_again_and_again(self) -> None:
        while not self._over.is_set():
            self.ends[self._ask()] += 1

    def _ask(self) -> str:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=20)
        body = json.dumps({"model": INTEROP_MODEL, "stream": True, "messages": [{"role": "user", "content": "hi"}]})
        headers = {
            "x-request-id": "r",
            "x-model": INTEROP_MODEL,
            "x-input-tokens": "10",
            "x-tokens": "5",
            "x-delay-ms": "20",
        }
        try:
            connection.request("POST", "/v1/chat/completions", body, headers)
            answer = StreamedAnswer(connection)
            answer.read_rest()
        except (OSError, http.client.HTTPException) as error:
            return f"broken: {error!r}"
        if answer.status != 200:
            return f"{answer.status} {answer.headers.get('x-stargate-error-code', '')} {answer.body!r}"
        return "200" if answer.tokens[-1:] == ["[DONE]"] else f"cut after {len(answer.tokens)} tokens"


def test_no_client_notices_a_rolling_restart(stack: Stack, api: ApiInThread, worker: tuple[str, ...]) -> None:
    engine = stack.engine()
    door = DoorProcess(stack, api)

    def pod(index: int, like: RouterPod | None = None) -> RouterPod:
        return RouterPod(
            stack,
            f"router-{index}",
            door.grpc,
            door_quic=door.quic,
            host=f"127.0.0.{index + 2}",
            extra=SCALED_READINESS,
            like=like,
        )

    def ready(one: RouterPod) -> bool:
        return one.get("/readyz") == 200

    pods = [pod(index) for index in range(3)]
    for one in pods:
        api.call(api.api.apply(one.slice))
    for index in range(2):
        arguments = worker_arguments(engine, door.grpc, worker_id=f"w{index}")
        stack.start(f"worker-{index}", [*worker, *arguments])
    for one in pods:
        wait_until(lambda one=one: ready(one), 60, f"{one.name} is ready")
    balancer = Balancer([(one.host, one.http) for one in pods])
    load = Load(balancer.port)
    try:
        wait_until(lambda: len(balancer.ready) == 3 and load.answered > 20, 30, "requests are answered")
        for index, leaving in enumerate(pods):
            api.call(api.api.delete(leaving.name))
            leaving.process.signal(signal.SIGTERM)
            assert leaving.process.wait(30) == 0
            pods[index] = coming = pod(index, like=leaving)
            assert coming.get("/readyz") == 503, "it warms up"
            api.call(api.api.apply(coming.slice))
            wait_until(lambda coming=coming: ready(coming), 60, f"{coming.name} is ready again")
            so_far = load.answered
            wait_until(lambda so_far=so_far: load.answered > so_far + 50, 30, "requests go on")
    finally:
        load.stop()
        balancer.stop()
    assert set(load.ends) == {"200"}, load.ends
    assert load.answered > 150
