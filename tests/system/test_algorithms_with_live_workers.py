"""Every algorithm steers real requests: one router process, workers that report what the test says, one model per policy."""

import asyncio
import http.client
import json
from collections import Counter
from contextlib import asynccontextmanager
from typing import NamedTuple

import pytest

from llm_request_router.testing import System
from support.registered_worker import INACTIVE, RegisteredWorker
from support.waiting import becomes

pytestmark = pytest.mark.loop("grpc")


WIDE = {"algorithm": "wait-and-widen", "ttft_bucket_size_ms": 1_000_000}
POLICY = {
    "default": "power-of-n",
    "models": {
        "random": "random",
        "turns": "round-robin",
        "limited": {"algorithm": "power-of-n", "max_input_work_seconds": 0.5},
        "near-first": "wait-and-widen",
        "sticky": {**WIDE, "cache_affinity_backend_selection_count": 1, "require_cache_affinity_key": True},
        "by-queue-time": {**WIDE, "comparator": "queue-time"},
        "pulsar": {"algorithm": "pulsar", "seed": "s", "require_cache_affinity_key": True},
        "hybrid": {
            "algorithm": "pulsar-wait-and-widen",
            "max_queue_time_floor_ms": 100,
            "max_queue_time_ceil_ms": 100,
            "ttft_bucket_size_ms": 1_000_000,
        },
    },
}


@pytest.fixture(scope="module")
def system(tmp_path_factory):
    policy = tmp_path_factory.mktemp("policy") / "lb.json"
    policy.write_text(json.dumps(POLICY))
    with System.start(f"--lb-config-path={policy}", "--metrics-prefix=prefixed_") as system:
        yield system


class Answer(NamedTuple):
    status: int
    worker: str | None
    cluster: str | None
    error_code: str | None


@asynccontextmanager
async def live(*workers):
    try:
        yield workers
    finally:
        for worker in workers:
            await worker.stop()


async def ask(system, model, *, tokens=0, without=(), **headers):
    """One request; header names with `_` for `-`."""

    def request():
        connection = http.client.HTTPConnection(system.ports.http, timeout=10)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        sent = {**system.headers(model, input_tokens=tokens), **named}
        try:
            body = b'{"stream":true}'
            connection.request(
                "POST", "/v1/chat/completions", body, {k: v for k, v in sent.items() if k not in without}
            )
            response = connection.getresponse()
            response.read()
            got = response.headers
            return Answer(
                response.status,
                got["x-inference-server-id"],
                got["x-stargate-cluster-id"],
                got["x-stargate-error-code"],
            )
        finally:
            connection.close()

    return await asyncio.to_thread(request)


async def served_by(system, model, times, **headers):
    answers = [await ask(system, model, **headers) for _ in range(times)]
    assert {answer.status for answer in answers} == {200}
    return Counter(answer.worker for answer in answers)


def worker(system, worker_id, **more):
    return RegisteredWorker(system, worker_id, **more)


async def test_power_of_n_compares_clusters_by_their_sums(system):
    one = await worker(system, "p-1", cluster_id="pair").start("default", queued_input_size=130)
    two = await worker(system, "p-2", cluster_id="pair").start("default", queued_input_size=130)
    single = await worker(system, "p-3").start("default", queued_input_size=120)
    async with live(one, two, single):
        assert await served_by(system, "default", 10) == {"p-3": 10}  # 1.2 s against 1.3 s
        for member in (one, two):
            member.advertise("default", queued_input_size=0)
            await member.update()
        assert await served_by(system, "default", 10) == {"p-1": 5, "p-2": 5}
        answers = [await ask(system, "default") for _ in range(2)]
        assert {answer.cluster for answer in answers} == {"pair"}


async def test_random_reaches_everybody(system):
    workers = [await worker(system, f"r-{i}").start("random", queued_input_size=1000 * i) for i in range(3)]
    async with live(*workers):
        assert set(await served_by(system, "random", 40)) == {"r-0", "r-1", "r-2"}


async def test_round_robin_takes_turns_whatever_the_load_and_the_header_can_ask_for_nothing_else(system):
    workers = [await worker(system, f"t-{i}").start("turns", queued_input_size=1000 * i) for i in range(3)]
    async with live(*workers):
        turns = [(await ask(system, "turns")).worker for _ in range(9)]
        assert turns == turns[:3] * 3
        assert set(turns) == {"t-0", "t-1", "t-2"}
        assert len(await served_by(system, "turns", 3, x_routing_method="Round_Robin")) == 3
        assert (await ask(system, "turns", x_routing_method="random")).status == 400


async def test_admission_and_the_ways_of_not_being_there_can_be_told_apart(system):
    only = await worker(system, "l-1").start("limited", queued_input_size=100)
    async with live(only):
        assert await ask(system, "limited", tokens=50) == (503, None, None, "overloaded_error")
        assert await ask(system, "nobody-has-this") == (404, None, None, "no_eligible_candidates")
        only.advertise("limited", status=INACTIVE)
        await only.update()
        assert await ask(system, "limited", tokens=50) == (503, None, None, None)
    gone = (404, None, None, "no_eligible_candidates")

    async def told():
        return await ask(system, "limited", tokens=50) == gone

    await becomes(told, "404 once the registration has ended")


async def test_wait_and_widen_prefers_the_near_and_opens_the_far_to_those_who_wait(system):
    fast = await worker(system, "w-fast").start("near-first", last_mean_input_tps=10_000)
    slow = await worker(system, "w-slow").start("near-first", last_mean_input_tps=1_000)
    async with live(fast, slow):
        assert await served_by(system, "near-first", 4, tokens=1000) == {"w-fast": 4}  # each adds 100 ms there
        fast.advertise("near-first", last_mean_input_tps=10_000, max_engine_concurrency=1, num_running_queries=1)
        await fast.update()
        assert (await ask(system, "near-first", tokens=100, x_max_wait_ms="0")).status == 503
        assert await served_by(system, "near-first", 3, tokens=100) == {"w-slow": 3}


async def test_an_affinity_key_stays_on_its_cluster_until_that_is_full(system):
    workers = [await worker(system, f"s-{i}").start("sticky") for i in range(3)]
    async with live(*workers):
        assert (await ask(system, "sticky")).status == 400
        ((first, times),) = (await served_by(system, "sticky", 20, x_cache_affinity_key="session")).items()
        assert times == 20
        (holder,) = [one for one in workers if one.worker_id == first]
        holder.advertise("sticky", max_engine_concurrency=1, num_running_queries=1)
        await holder.update()
        assert first not in await served_by(system, "sticky", 5, x_cache_affinity_key="session")


async def test_queue_time_is_compared_for_the_priority_of_the_request(system):
    urgent = await worker(system, "q-1").start("by-queue-time", queue_time_estimate_ms_by_priority={0: 1000, 4: 5})
    patient = await worker(system, "q-2").start("by-queue-time", queue_time_estimate_ms_by_priority={0: 0, 4: 500})
    async with live(urgent, patient):
        assert await served_by(system, "by-queue-time", 5, x_priority="4") == {"q-1": 5}
        assert await served_by(system, "by-queue-time", 5) == {"q-2": 5}


async def test_pulsar_keeps_each_key_on_one_worker_and_spreads_the_keys(system):
    rates = {"k-1": 1000, "k-2": 700, "k-3": 400}
    workers = [await worker(system, name).start("pulsar", last_mean_input_tps=tps) for name, tps in rates.items()]
    async with live(*workers):
        for key in ("one", "two"):
            assert len(await served_by(system, "pulsar", 20, x_cache_affinity_key=key)) == 1
        found = [await ask(system, "pulsar", x_cache_affinity_key=f"key-{i}") for i in range(40)]
        assert {answer.worker for answer in found} == set(rates)
        assert (await ask(system, "pulsar")).status == 400
        without_tokens = await ask(system, "pulsar", x_cache_affinity_key="one", without=("x-input-tokens",))
        assert without_tokens.status == 400


async def test_the_hybrid_leaves_its_first_choice_when_the_queue_there_is_too_long(system):
    workers = {name: await worker(system, name).start("hybrid") for name in ("h-1", "h-2", "h-3")}
    async with live(*workers.values()):
        (first,) = await served_by(system, "hybrid", 10, x_cache_affinity_key="session")
        workers[first].advertise("hybrid", queued_input_size=1000)  # 10 s
        await workers[first].update()
        assert first not in await served_by(system, "hybrid", 5, x_cache_affinity_key="session")
        for one in workers.values():
            one.advertise("hybrid", queued_input_size=1000)
            await one.update()
        assert (await ask(system, "hybrid", x_cache_affinity_key="session")).status == 503
    page = await asyncio.to_thread(system.request, "GET", "/metrics", address=system.metrics_address)
    labels = 'algorithm="pulsar-wait-and-widen",model="hybrid",routing_key="",selection='
    assert f'prefixed_routing_selections_total{{{labels}"primary"}} 10' in page.body.decode()
    assert f'prefixed_routing_selections_total{{{labels}"fallback"}} 5' in page.body.decode()
    assert b"stargate_" not in page.body
