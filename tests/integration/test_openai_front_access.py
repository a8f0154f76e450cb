"""The front with real keys, limits, estimates and affinity: what reaches workers, what clients are told, and what is counted."""

import asyncio
import dataclasses
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from router.openai.estimator import LearningEstimator
from router.openai.keys.authenticator import KeyAuthenticator
from router.openai.keys.caller import GrantedCaller, Names
from router.openai.keys.key_format import digest_of, new_key
from router.openai.keys.key_table import KeyTable
from router.openai.limits.counter import Charge, Outcome, Slots, Verdict
from router.openai.limits.limit_set import LimitSet
from router.openai.limits.limiter import KeyLimiter
from router.openai.limits.memory_counter import MemoryCounter
from router.openai.limits.rule import parse_rules
from router.openai.usage import UsageCounters
from router.telemetry.metrics import Metrics
from support.front_in_memory import DONE, MESSAGES, chat, chunk, error_of, front_in_memory, get, hello, post, stream
from support.front_in_memory import FrontInMemory as Front
from support.waiting import eventually

pytestmark = pytest.mark.loop("uvloop")


class Callers:
    """Keys of callers, and the services that know them."""

    def __init__(self, *callers: GrantedCaller) -> None:
        self.keys = {caller.key_id: new_key() for caller in callers}
        self.metrics = Metrics()
        table = KeyTable({digest_of(self.keys[one.key_id].encode()): one for one in callers})
        self.authenticator = KeyAuthenticator(
            lambda: table, self.metrics.openai_key_refusals_total, hide=True, now=lambda: 0.0
        )
        self.counter = MemoryCounter(lambda: 0.0)
        self.counters = UsageCounters(self.metrics)

    def headers(self, key_id: str, **more: str) -> dict[str, str]:
        return {"authorization": f"Bearer {self.keys[key_id]}", **more}


@asynccontextmanager
async def front_for(callers: Callers, counter: Any = None) -> AsyncIterator[Front]:
    async with front_in_memory(callers.authenticator) as front:
        limiter = KeyLimiter(
            counter or callers.counter, callers.metrics.openai_limit_refusals_total, open_if_unknown=False
        )
        front.context.services = dataclasses.replace(front.context.services, limiter=limiter)
        yield front


def limited(key_id: str = "a", requests: str = "", tokens: str = "", concurrency: int | None = None) -> GrantedCaller:
    return GrantedCaller(key_id=key_id, limits=LimitSet(parse_rules(requests), parse_rules(tokens), concurrency))


async def test_without_a_right_key_nothing_reaches_a_worker_on_any_path():
    callers = Callers(GrantedCaller(key_id="a"))
    async with front_for(callers) as front:
        worker = front.worker(on_request=hello)
        wrong: list[dict[str, Any]] = [
            {},
            {"authorization": f"Bearer {new_key()}"},
            {"authorization": "Bearer"},
            {"authorization": f"Basic {callers.keys['a']}"},
            {"authorization": callers.keys["a"]},
            {"x_api_key": callers.keys["a"] + "x"},
            {"cookie": f"authorization=Bearer {callers.keys['a']}"},
            {"proxy_authorization": f"Bearer {callers.keys['a']}"},
        ]
        for headers in wrong:
            for data in (chat(headers=headers), post("/v1/embeddings", {"model": "m", "input": "x"}, **headers)):
                answer = await front.ask(data)
                assert answer.status == 401
                assert error_of(answer)["code"] == "invalid_api_key"
                assert (answer.header("www-authenticate") or "").startswith("Bearer")
            assert (await front.ask(get("/v1/models", **headers))).status == 401
            assert (await front.ask(get("/v1/models/m", **headers))).status == 401
        assert worker.exchanges == []
        for headers in ({"authorization": f"bearer {callers.keys['a']}"}, {"api_key": callers.keys["a"]}):
            assert (await front.ask(chat(headers=headers))).status == 200


async def test_a_key_in_the_url_is_no_key():
    callers = Callers(GrantedCaller(key_id="a"))
    async with front_for(callers) as front:
        front.worker(on_request=hello)
        answer = await front.ask(post(f"/v1/chat/completions?api_key={callers.keys['a']}", {"model": "m"}))
        assert answer.status == 401


async def test_priority_and_routing_method_are_those_of_the_key():
    callers = Callers(GrantedCaller(key_id="a", priority=7, routing_methods={"m": "random"}), GrantedCaller(key_id="b"))
    async with front_for(callers) as front:
        worker = front.worker(on_request=hello)
        for key_id in ("a", "b"):
            answer = await front.ask(chat(headers=callers.headers(key_id, x_priority="1", x_routing_method="pulsar")))
            assert answer.status == 200
        assert [exchange.header("x-priority") for exchange in worker.exchanges] == ["7", None]


async def test_lists_and_single_models_are_those_of_the_keys_rights():
    callers = Callers(
        GrantedCaller(key_id="a", models=Names(["org/*"])), GrantedCaller(key_id="b", routing_keys=Names(["tenant"]))
    )
    async with front_for(callers) as front:
        front.worker("w1", model="org/a")
        front.worker("w2", model="m")
        front.worker("w3", model="m", key="tenant")
        for key_id, ids in (("a", ["org/a"]), ("b", ["tenant/m"])):
            answer = await front.ask(get("/v1/models", **callers.headers(key_id)))
            assert [one["id"] for one in json.loads(answer.body)["data"]] == ids
        assert (await front.ask(get("/v1/models/org/a", **callers.headers("b")))).status == 404
        assert (await front.ask(get("/v1/models/org/a", **callers.headers("a")))).status == 200


async def test_two_keys_never_share_an_affinity_key():
    callers = Callers(GrantedCaller(key_id="a"), GrantedCaller(key_id="b"))
    async with front_for(callers) as front:
        worker = front.worker(on_request=hello)
        for key_id in ("a", "b", "a"):
            await front.ask(chat(headers=callers.headers(key_id), prompt_cache_key="shared"))
            await front.ask(chat(headers=callers.headers(key_id)))
        found = [exchange.header("x-cache-affinity-key") for exchange in worker.exchanges]
        assert found[:2] == found[4:]
        assert len(set(found)) == 4


async def test_the_estimate_follows_what_engines_report_and_so_does_the_output_hint():
    callers = Callers(GrantedCaller(key_id="a"))
    async with front_for(callers) as front:
        worker = front.worker(on_request=hello)
        for _ in range(80):
            assert (await front.ask(chat(headers=callers.headers("a"), max_tokens=4_096))).status == 200
        first, last = worker.exchanges[0], worker.exchanges[-1]
        assert (first.header("x-input-tokens"), first.header("x-token-estimate")) == ("5", "4101")
        assert (last.header("x-input-tokens"), last.header("x-token-estimate")) == ("10", "12")
        assert isinstance(front.context.services.estimator, LearningEstimator)


async def test_limits_are_told_enforced_and_corrected_by_what_the_engine_reported():
    """Limit 100-M, estimate 5, no output limit, real usage 11 + 2: 94 are left, 81 after the correction, 68 after the next."""
    callers = Callers(limited(tokens="100-M"))
    async with front_for(callers) as front:
        front.worker(on_request=hello)
        front.context.services = dataclasses.replace(front.context.services, estimator=LearningEstimator(correct=False))
        left = []
        for turn in range(3):
            answer = await front.ask(chat(headers=callers.headers("a"), stream=turn == 1))
            assert answer.status == 200
            assert answer.header("x-ratelimit-limit-tokens") == "100"
            left.append(answer.header("x-ratelimit-remaining-tokens"))
        assert left == ["94", "81", "68"]
        answer = await front.ask(chat(headers=callers.headers("a"), max_tokens=90))
        assert answer.status == 429
        assert error_of(answer)["type"] == "tokens"
        assert answer.header("x-ratelimit-remaining-tokens") == "61"
        assert answer.header("retry-after") == "21"
        answer = await front.ask(chat(headers=callers.headers("a"), max_tokens=200))
        assert (answer.status, error_of(answer)["code"]) == (400, "rate_limit_request_too_large")
        records = front.usage.records
        assert [(record.key_id, record.status, record.end.value) for record in records[-2:]] == [
            ("a", 429, "refused"),
            ("a", 400, "refused"),
        ]


async def test_a_request_that_no_worker_served_is_not_charged():
    callers = Callers(limited(requests="10-D", tokens="1000-D", concurrency=1))
    async with front_for(callers) as front:
        worker = front.worker(on_request=lambda exchange: exchange.answer(400, b'{"error":{"message":"no"}}'))
        for _ in range(5):
            assert (await front.ask(chat(headers=callers.headers("a"), max_tokens=100))).status == 400
        worker.on_request = hello
        answer = await front.ask(chat(headers=callers.headers("a"), max_tokens=100))
        assert answer.header("x-ratelimit-remaining-requests") == "9"
        assert answer.header("x-ratelimit-remaining-tokens") == "895"
        assert callers.counter.running == 0


async def test_without_a_report_what_was_seen_is_charged_and_a_client_that_leaves_is_too():
    callers = Callers(limited(tokens="100-D", concurrency=1))
    async with front_for(callers) as front:
        worker = front.worker(
            on_request=lambda exchange: stream(exchange, *[chunk({"content": "x"})] * 10, chunk({}, "stop"), DONE)
        )
        assert (await front.ask(chat(headers=callers.headers("a")))).status == 200
        worker.on_request = None
        client = await front.client()
        client.send(chat(headers=callers.headers("a"), stream=True))
        exchange = await worker.next(1)
        assert callers.counter.running == 1
        exchange.head(200, content_type="text/event-stream")
        for _ in range(20):
            exchange.body(chunk({"content": "x"}))
        await client.head()
        client.leave()
        await eventually(lambda: not callers.counter.running)
        worker.on_request = hello
        answer = await front.ask(chat(headers=callers.headers("a")))
        assert answer.header("x-ratelimit-remaining-tokens") == str(100 - (5 + 11) - (5 + 20) - (5 + 1))


async def test_of_64_requests_at_once_as_many_run_as_are_allowed():
    callers = Callers(limited(concurrency=10), GrantedCaller(key_id="b"))
    async with front_for(callers) as front:
        worker = front.worker()
        clients = [await front.client() for _ in range(64)]
        for client in clients:
            client.send(chat(headers=callers.headers("a")))
        await eventually(lambda: len(worker.exchanges) == 10)
        refused = 0
        answers = [asyncio.create_task(client.answer()) for client in clients]
        await eventually(lambda: sum(task.done() for task in answers) == 54)
        for task in answers:
            if task.done():
                answer = task.result()
                refused += answer.status == 429
                assert error_of(answer)["type"] == "concurrency"
                assert answer.header("retry-after") == "1"
        assert refused == 54
        assert callers.counter.running == 10
        for exchange in worker.exchanges:
            hello(exchange)
        await asyncio.wait(answers)
        assert sum(task.result().status == 200 for task in answers) == 10
        await eventually(lambda: not callers.counter.running)


class SlowCounter:
    """Grants when it is told to."""

    def __init__(self) -> None:
        self.asked: list[asyncio.Future[Outcome]] = []
        self.settled = 0

    def reserve(
        self, owner: str, charges: tuple[Charge, ...], slots: tuple[Slots, ...], lease: str
    ) -> asyncio.Future[Outcome]:
        self.asked.append(asyncio.get_running_loop().create_future())
        return self.asked[-1]

    def settle(self, owner: str, charges: tuple[Charge, ...], slots: tuple[Slots, ...], lease: str) -> None:
        self.settled += 1


async def test_a_client_that_leaves_while_its_limits_are_being_checked_takes_nothing():
    callers, counter = Callers(limited(requests="5-M")), SlowCounter()
    async with front_for(callers, counter) as front:
        worker = front.worker(on_request=hello)
        client = await front.client()
        client.send(chat(headers=callers.headers("a")))
        await eventually(lambda: counter.asked)
        client.leave()
        await eventually(lambda: not front.context.running)
        counter.asked[0].set_result(Outcome(Verdict.GRANTED, (4.0,)))
        await eventually(lambda: counter.settled == 1)
        assert worker.exchanges == []


async def test_limits_that_are_checked_elsewhere_hold_up_one_request_only_and_may_be_unknown():
    callers, counter = Callers(limited(requests="5-M"), GrantedCaller(key_id="b")), SlowCounter()
    async with front_for(callers, counter) as front:
        front.worker(on_request=hello)
        client = await front.client()
        client.send(chat(headers=callers.headers("a"), messages=MESSAGES))
        await eventually(lambda: counter.asked)
        assert (await front.ask(chat(headers=callers.headers("b")))).status == 200
        counter.asked[0].set_result(Outcome(Verdict.UNKNOWN))
        answer = await client.answer()
        assert (answer.status, error_of(answer)["code"]) == (503, "rate_limit_unavailable")


async def test_a_flood_of_wrong_keys_leaves_nothing_behind_and_others_are_served():
    callers = Callers(GrantedCaller(key_id="a"))
    async with front_for(callers) as front:
        front.worker(on_request=hello)
        client = await front.client()
        for i in range(2_000):
            client.send(chat(headers={"authorization": f"Bearer sk-lrr-{i:064x}"}))
            assert (await client.answer()).status == 401
        assert callers.metrics.openai_key_refusals_total.value(("wrong",)) == 2_000
        assert callers.metrics.openai_key_refusals_total.series() == 1
        assert front.usage.records == []
        assert not front.context.running
        assert (await front.ask(chat(headers=callers.headers("a")))).status == 200
