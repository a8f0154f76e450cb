"""What a gateway is promised, through a real router and real workers: the reference's, dialled and dialling, and our own."""

import http.client
import signal
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import pytest

from support.processes import OUR_WORKER, OURS, RouterProcess, Stack
from support.recording_engine import (
    CHAT_ANSWER,
    EMBEDDINGS_ANSWER,
    RESPONSES_ANSWER,
    RecordingEngine,
    Refusal,
    chat_body,
    rejecting,
)
from support.waiting import wait_until

WORKERS = {"solo": ("", ["solo", "two"]), "other": ("", ["two"]), "m-1": ("shared", ["m"]), "m-2": ("shared", ["m"])}
"""Cluster and models of each worker: one model with one worker, one on two clusters, one on a cluster of two."""
PATHS = {"/v1/chat/completions": CHAT_ANSWER, "/v1/responses": RESPONSES_ANSWER, "/v1/embeddings": EMBEDDINGS_ANSWER}
REQUIRED = ("x-model", "x-request-id", "x-input-tokens")


class Got(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes


class Harness:
    def __init__(self, stack: Stack, worker: tuple[str, ...], *, direct: bool) -> None:
        self.direct = direct
        self.router: RouterProcess = stack.router(OURS, direct=direct)
        self.engines = {name: RecordingEngine() for name in WORKERS}
        for name, (cluster, models) in WORKERS.items():
            command = [
                *(*worker, f"--upstream-http-base-url=http://127.0.0.1:{self.engines[name].port}"),
                *(f"--model-name={model}" for model in models),
                *(f"--stargate-address=127.0.0.1:{self.router.grpc}", f"--inference-server-id={name}"),
                *([f"--cluster-id={cluster}"] if cluster else []),
                *(f"--backend-connectivity={'direct' if direct else 'reverse'}", "--tunnel-protocol=raw-quic"),
                *("--quic-insecure", "--min-update-interval-ms=200", "--disable-bringup", "--metrics-port=0"),
                *("--active-canary-interval-ms=0", "--initial-input-tps=100000", "--metrics-host=127.0.0.1"),
            ]
            stack.start(name, command)
        for model, count in {"solo": 1, "two": 2, "m": 2}.items():
            wait_until(lambda m=model, n=count: self.active(m) == n, 20, f"{model} is routable")

    def active(self, model: str) -> int:
        return int(self.count("active_inference_servers", f'model="{model}"'))

    def count(self, family: str, *labels: str) -> float:
        page = self._request("GET", "/metrics", port=self.router.metrics).body.decode().splitlines()
        lines = [line.rpartition(" ") for line in page if line.startswith(f"stargate_{family}{{")]
        return sum(float(value) for name, _, value in lines if all(label in name for label in labels))

    def post(self, model: str, path: str = "/v1/chat/completions", body: bytes | None = None, **headers: str) -> Got:
        fields = {"content-type": "application/json", "x-request-id": "r", "x-model": model, "x-input-tokens": "10"}
        fields |= {name.replace("_", "-"): value for name, value in headers.items()}
        return self._request(
            "POST", path, chat_body() if body is None else body, {k: v for k, v in fields.items() if v}
        )

    def _request(self, method: str, path: str, body: bytes | None = None, headers=None, port: int = 0) -> Got:
        connection = http.client.HTTPConnection("127.0.0.1", port or self.router.http, timeout=15)
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            named = {name.lower(): value for name, value in response.getheaders()}
            return Got(response.status, named, response.read())
        finally:
            connection.close()

    def first_of(self, *rest) -> None:
        """Of these engines the one that is asked first answers with the refusal that comes last in the list."""
        *names, refusal = rest
        refusals = [refusal]
        for name in names:
            self.engines[name].refusals = refusals

    def hits(self, *names: str) -> int:
        return sum(len(self.engines[name].seen) for name in names)


REFERENCE = [pytest.param(name, marks=pytest.mark.interop) for name in ("pylon", "pylon, dialled")]


@pytest.fixture(scope="module", params=["ours", *REFERENCE])
def harness(request, tmp_path_factory):
    worker = OUR_WORKER if request.param == "ours" else (request.getfixturevalue("pylon"),)
    stack = Stack(tmp_path_factory.mktemp("contract"))
    harness = None
    try:
        harness = Harness(stack, worker, direct=request.param == "pylon, dialled")
        yield harness
    finally:
        for process in stack.processes:
            process.signal(signal.SIGKILL)  # a dialled worker takes its time to leave
        stack.stop()
        for engine in harness.engines.values() if harness else ():
            engine.close()


@pytest.fixture(autouse=True)
def forget(harness):
    for engine in harness.engines.values():
        engine.seen.clear()
        engine.refusals = []


@pytest.mark.parametrize("path", PATHS)
def test_path_query_headers_and_body_pass_and_the_worker_is_named(harness, path):
    body = b'{"model":"m",  "stream":true, "input":"caf\\u00e9 \xc3\xa9"}'
    got = harness.post("solo", f"{path}?trace=1&b=%20", body, authorization="Bearer t", x_own="kept")
    assert (got.status, got.body) == (200, PATHS[path])
    assert got.headers["x-inference-server-id"] == got.headers["x-stargate-cluster-id"] == "solo"
    assert got.headers["x-inference-server-url"].startswith("quic://" if harness.direct else "http://127.0.0.1:")
    (seen,) = harness.engines["solo"].seen
    assert (seen.path, seen.body) == (f"{path}?trace=1&b=%20", body)
    for name, value in {"x-model": "solo", "x-request-id": "r", "x-input-tokens": "10", "x-own": "kept"}.items():
        assert seen.headers[name] == value
    assert seen.headers["authorization"] == "Bearer t"


@pytest.mark.parametrize("path", PATHS)
def test_an_engines_error_is_passed_on_with_the_worker_named_and_not_retried(harness, path):
    for engine in ("solo", "other"):
        harness.engines[engine].refusals.append(Refusal(503, b'{"error":"busy"}', {}))
    got = harness.post("two", path)
    assert (got.status, got.body) == (503, b'{"error":"busy"}')
    assert got.headers["x-inference-server-id"] in ("solo", "other")
    assert {"x-inference-server-url", "x-stargate-cluster-id"} <= set(got.headers)
    assert harness.hits("solo", "other") == 1


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses"])
@pytest.mark.parametrize("body", [chat_body(stream=False), b'{"model":"m"}'])
def test_answers_in_one_piece_are_refused_by_the_worker(harness, path, body):
    got = harness.post("solo", path, body)
    assert got.status == 400
    assert f"{path} requests must set stream=true" in got.body.decode()
    assert harness.hits("solo") == 0


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("missing", REQUIRED)
def test_without_a_required_header_no_engine_is_asked(harness, path, missing):
    got = harness.post("solo", path, **{missing.replace("-", "_"): ""})
    assert (got.status, got.body) == (400, b"")
    assert harness.hits(*WORKERS) == 0


def test_members_of_a_cluster_take_turns(harness):
    answers = [harness.post("m") for _ in range(4)]
    assert {answer.headers["x-stargate-cluster-id"] for answer in answers} == {"shared"}
    assert [harness.hits("m-1"), harness.hits("m-2")] == [2, 2]


def test_models_stay_apart(harness):
    for _ in range(3):
        assert harness.post("solo").headers["x-inference-server-id"] == "solo"
        assert harness.post("m").headers["x-inference-server-id"] in ("m-1", "m-2")
    got = harness.post("nobody's")
    assert (got.status, got.headers["x-stargate-error-code"]) == (404, "no_eligible_candidates")


def test_a_retryable_rejection_goes_to_the_other_cluster_with_the_same_bytes(harness):
    body = b'{"stream":true,"fill":"%s"}' % (b"f" * 200_000)
    counters = {
        ("proxy_attempts_total", 'result="upstream_429"'): 1,
        ("proxy_attempts_total", 'result="upstream_200"'): 1,
        ("proxy_retries_total", 'reason="upstream_admission_rejected"'): 1,
        ("routing_selections_total", 'algorithm="power-of-n"'): 2,
        ("requests_total", 'status="200"'): 1,
        ("requests_total", 'status="429"'): 0,
    }
    before = {labels: harness.count(labels[0], 'model="two"', labels[1]) for labels in counters}
    harness.first_of("solo", "other", rejecting())
    got = harness.post("two", body=body)
    assert (got.status, got.body) == (200, CHAT_ANSWER)
    assert [one.body for name in ("solo", "other") for one in harness.engines[name].seen] == [body, body]
    after = {labels: harness.count(labels[0], 'model="two"', labels[1]) for labels in counters}
    assert {labels: after[labels] - before[labels] for labels in counters} == counters


def test_without_a_budget_the_rejection_itself_is_the_answer(harness):
    harness.first_of("solo", "other", rejecting())
    got = harness.post("two", x_stargate_max_wait_ms="0")
    assert (got.status, got.body, got.headers["retry-after"]) == (429, b'{"error":"full"}', "3")
    assert not {name for name in got.headers if name.startswith("x-stargate-retry")}
    assert harness.hits("solo", "other") == 1


def test_a_rejection_by_the_only_worker_is_an_empty_503(harness):
    harness.first_of("solo", rejecting(503))
    got = harness.post("solo")
    assert (got.status, got.body, got.headers.get("x-inference-server-id")) == (503, b"", None)
    assert harness.count("proxy_retry_exhausted_total", 'model="solo"', 'reason="no_eligible_backend"') >= 1


def test_twenty_at_once_are_all_answered(harness):
    with ThreadPoolExecutor(20) as callers:
        answers = list(callers.map(lambda _: harness.post("two"), range(20)))
    assert [(answer.status, answer.body) for answer in answers] == [(200, CHAT_ANSWER)] * 20
