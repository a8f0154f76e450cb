"""Waits for the clusters of an affinity key: wait-and-widen alone, and requests of the proxy on a virtual clock."""

import asyncio
import json
import random
from typing import Any

import pytest
from structlog.testing import capture_logs

from router.balancing import Choice, Selector, Unavailable, Wait, load_config
from router.balancing.explain import explain
from router.balancing.outcome import shorter
from router.http1.request import ClientRequest, RequestBody
from router.http1.response import Response, ResponseOutput
from router.operators.explain_command import render_text
from router.ports.identity import Identity
from router.proxy.proxy import Proxy
from router.registry import ModelStats, ModelUpdate, Registry
from router.telemetry.metrics import Metrics
from support.balancing import EARLIER, FakeCandidate, FakeTarget, balancer, request, selector
from support.gateway_in_memory import PlayedWorker
from support.package_settings import proxy_settings

FULL = {"max_engine_concurrency": 1, "num_running_queries": 1}
ONE_OF_FIVE = {"algorithm": "wait-and-widen", "cache_affinity_backend_selection_count": 1, "ttft_bucket_size_ms": 1000}
ASKED = request(cache_affinity_key="prefix", input_tokens=100)


def clusters(count: int = 5, **stats: Any) -> list[FakeCandidate]:
    return [FakeCandidate(f"c{index}", last_mean_input_tps=1000.0, **stats) for index in range(count)]


def change(candidates: list[FakeCandidate], cluster_id: str, **stats: Any) -> None:
    index = next(index for index, one in enumerate(candidates) if one.cluster_id == cluster_id)
    candidates[index] = FakeCandidate(cluster_id, **{"last_mean_input_tps": 1000.0, **stats})


def primary(settings: dict[str, Any]) -> str:
    choice = balancer(settings).choose(ASKED, clusters(), (), 0.0)
    found: str = choice.candidate.cluster_id
    return found


def wait_ms(found: object) -> float:
    assert isinstance(found, Wait)
    return found.seconds * 1000.0


# --- the algorithm


def test_a_full_group_is_waited_for_and_then_all_are_asked() -> None:
    settings = {**ONE_OF_FIVE, "cache_affinity_wait_ms": 200}
    first, candidates, chooser = primary(settings), clusters(), balancer(settings)
    change(candidates, first, **FULL)
    assert wait_ms(chooser.choose(ASKED, candidates, (), 50.0)) == pytest.approx(150.0)
    assert wait_ms(chooser.choose(ASKED, candidates, (), 199.0)) == pytest.approx(1.0)
    choice = chooser.choose(ASKED, candidates, (), 200.0)
    assert isinstance(choice, Choice)
    assert (choice.candidate.cluster_id != first, choice.rank_depth) == (True, 2)


def test_a_member_of_the_group_is_preferred_after_the_wait_too() -> None:
    settings = {**ONE_OF_FIVE, "cache_affinity_wait_ms": 200}
    first, chooser = primary(settings), balancer(settings)
    for elapsed_ms in (0.0, 50.0, 5000.0):
        choice = chooser.choose(ASKED, clusters(), (), elapsed_ms)
        assert (choice.candidate.cluster_id, choice.rank_depth) == (first, 1)


def test_an_excluded_member_is_not_replaced_by_another_cluster() -> None:
    settings = {**ONE_OF_FIVE, "cache_affinity_wait_ms": 200}
    first, chooser = primary(settings), balancer(settings)
    assert wait_ms(chooser.choose(ASKED, clusters(), {first}, 50.0)) == pytest.approx(150.0)
    choice = chooser.choose(ASKED, clusters(), {first}, 200.0)
    assert (choice.candidate.cluster_id != first, choice.rank_depth) == (True, 2)
    # 0.11 takes the next of the ring at once.
    earlier = balancer(ONE_OF_FIVE, settings=EARLIER).choose(ASKED, clusters(), {first}, 0.0)
    assert (earlier.candidate.cluster_id != first, earlier.rank_depth) == (True, 1)


def test_without_a_wait_all_are_asked_at_once_as_a_fallback() -> None:
    first, candidates = primary(ONE_OF_FIVE), clusters()
    change(candidates, first, **FULL)
    assert balancer(ONE_OF_FIVE).choose(ASKED, candidates, (), 0.0).rank_depth == 2
    assert balancer(ONE_OF_FIVE, settings=EARLIER).choose(ASKED, candidates, (), 0.0).rank_depth == 1


def test_the_fallback_of_a_larger_group_is_deeper() -> None:
    settings = {**ONE_OF_FIVE, "cache_affinity_backend_selection_count": 3}
    choice = balancer(settings).choose(ASKED, [*clusters(4, **FULL), *clusters(5)[4:]], (), 0.0)
    assert choice.candidate.cluster_id == "c4"
    assert choice.rank_depth in (1, 4)
    everybody = {**ONE_OF_FIVE, "cache_affinity_backend_selection_count": 9}
    assert balancer(everybody).choose(ASKED, [*clusters(4, **FULL), *clusters(5)[4:]], (), 0.0).rank_depth == 1


def near_and_far(**near: Any) -> list[FakeCandidate]:
    return [
        FakeCandidate("near", rtt_ns=20_000_000, last_mean_input_tps=1e9, **near),
        FakeCandidate("full", rtt_ns=61_000_000, last_mean_input_tps=1e9, **FULL),
        FakeCandidate("far", rtt_ns=140_000_000, last_mean_input_tps=1e9),
        FakeCandidate("no-rate", rtt_ns=1),
    ]


def test_a_locked_bucket_with_capacity_is_waited_for_without_affinity() -> None:
    chooser = balancer({"algorithm": "wait-and-widen"})
    asked = request(input_tokens=0x10)
    # The second bucket needs 41 ms / 4, the third one 79 ms / 4 more.
    assert wait_ms(chooser.choose(asked, near_and_far(**FULL), (), 5.0)) == pytest.approx(25.0)
    assert wait_ms(chooser.choose(asked, near_and_far(**FULL), (), 29.0)) == pytest.approx(1.0)
    choice = chooser.choose(asked, near_and_far(**FULL), (), 30.0)
    assert (choice.candidate.cluster_id, choice.rank_depth) == ("far", 1)
    assert chooser.choose(asked, near_and_far(), (), 5.0).candidate.cluster_id == "near"


@pytest.mark.parametrize("elapsed_ms", [0.0, 1000.0])
def test_nothing_is_waited_for_if_no_bucket_has_capacity(elapsed_ms: float) -> None:
    chooser = balancer({"algorithm": "wait-and-widen"})
    without_capacity = [one for one in near_and_far(**FULL) if one.cluster_id != "far"]
    assert chooser.choose(request(input_tokens=1), without_capacity, (), elapsed_ms) is None
    assert chooser.choose(request(input_tokens=1), clusters(3, **FULL), (), elapsed_ms) is None
    assert chooser.choose(request(input_tokens=1), clusters(2), {"c0", "c1"}, elapsed_ms) is None


def test_a_bucket_of_the_group_that_unlocks_sooner_shortens_the_wait() -> None:
    settings = {
        "algorithm": "wait-and-widen",
        "cache_affinity_backend_selection_count": 9,
        "cache_affinity_wait_ms": 200,
    }
    candidates = [one for one in near_and_far(**FULL) if one.cluster_id != "full"]
    asked = request(cache_affinity_key="k", input_tokens=16)
    found = balancer(settings).choose(asked, candidates, (), 10.0)
    assert wait_ms(found) == pytest.approx(20.0)
    # After the wait buckets of all clusters are unlocked by the age since its end, the group's by the whole age.
    later = balancer({**settings, "cache_affinity_wait_ms": 5}).choose(asked, candidates, (), 10.0)
    assert wait_ms(later) == pytest.approx(20.0)


def test_buckets_of_all_clusters_unlock_by_the_age_since_the_wait() -> None:
    settings = {
        "algorithm": "wait-and-widen",
        "cache_affinity_backend_selection_count": 1,
        "cache_affinity_wait_ms": 100,
    }
    candidates = [one for one in near_and_far(**FULL) if one.cluster_id != "full"]
    keys = [f"k{index}" for index in range(50)]
    waits = set()
    for key in keys:
        found = balancer(settings).choose(request(cache_affinity_key=key, input_tokens=16), candidates, (), 110.0)
        waits.add(round(wait_ms(found)) if isinstance(found, Wait) else found.candidate.cluster_id)
    assert waits == {20, "far"}


def test_a_discount_counts_for_the_group_only() -> None:
    # At 100 tokens/s a prompt of 100 tokens takes 1 s, and half of it 0.5 s.
    settings = {"algorithm": "wait-and-widen", "cache_affinity_backend_selection_count": 2, "n": 2}
    asked = request(cache_affinity_key="k", input_tokens=100)
    quick = FakeCandidate("quick", rtt_ns=0, last_mean_input_tps=1000.0, queue_time_estimate_ms_by_priority={"0": 600})
    cached = FakeCandidate("cached", rtt_ns=0, last_mean_input_tps=100.0)
    wide = {**settings, "ttft_bucket_size_ms": 10_000}
    # Full cost: 1000 ms against 700 ms; discounted 500 ms against 650 ms.
    for discount, best in ((1.0, "quick"), (0.5, "cached")):
        for config in (settings, wide):
            chooser = balancer({**config, "cache_affinity_input_tokens_scale": discount})
            assert chooser.choose(asked, [quick, cached], (), 0.0).candidate.cluster_id == best
            outside = chooser.choose(request(input_tokens=100), [quick, cached], (), 0.0)
            assert outside.candidate.cluster_id == "quick"


@pytest.mark.parametrize("comparator", ["queue-time", "num-requests-queued"])
def test_a_discount_does_not_change_other_comparators(comparator: str) -> None:
    settings = {**ONE_OF_FIVE, "cache_affinity_backend_selection_count": 2, "comparator": comparator}
    chooser = balancer({**settings, "cache_affinity_input_tokens_scale": 0.0, "ignore_input_processing_time": True})
    queued = FakeCandidate("queued", last_mean_input_tps=1e6, queued_input_size=9000, queue_size=2)
    idle = FakeCandidate("idle", last_mean_input_tps=1e6)
    assert chooser.choose(ASKED, [queued, idle], (), 0.0).candidate.cluster_id == "idle"


def test_the_shorter_wait_is_the_one_there_is() -> None:
    short, long = Wait(1.0), Wait(2.0)
    assert shorter(short, long) is shorter(long, short) is shorter(short, None) is shorter(None, short) is short
    assert shorter(None, None) is None


# --- the selector


def decide(policy: Selector, target: FakeTarget, asked: Any, now: float, failed: set[str] | None = None) -> Any:
    return policy.select(
        policy.resolve("m", None),
        asked,
        target,
        advertised=bool,
        failed_backends=set(),
        failed_clusters=set() if failed is None else failed,
        now=now,
    )


def document(**settings: Any) -> bytes:
    return json.dumps({"models": {"m": {**ONE_OF_FIVE, **settings}}}).encode()


def test_a_sleep_is_the_wait_a_period_or_the_time_left_and_needs_no_header() -> None:
    policy = selector(load_config(document(cache_affinity_wait_ms=70_000)))
    target = FakeTarget(*clusters(2, **FULL))
    asked = request(model_id="m", cache_affinity_key="k", input_tokens=1)
    for now, seconds in ((0.0, 0.025), (59.99, 0.01)):
        outcome = decide(policy, target, asked, now)
        assert outcome.seconds == pytest.approx(seconds)
        assert outcome.remaining_ms == pytest.approx((60 - now) * 1000)
    assert isinstance(decide(policy, target, asked, 60.0), Unavailable)
    soon = selector(load_config(document(cache_affinity_wait_ms=10)))
    assert decide(soon, target, asked, 0.004).seconds == pytest.approx(0.006)
    assert decide(soon, target, asked, 0.00999999).seconds == pytest.approx(0.0001)


def test_a_limit_of_the_request_ends_its_wait() -> None:
    policy = selector(load_config(document(cache_affinity_wait_ms=200)))
    target = FakeTarget(*clusters(2, **FULL))
    asked = request(model_id="m", cache_affinity_key="k", input_tokens=1, max_wait_ms=50)
    assert decide(policy, target, asked, 0.04).seconds == pytest.approx(0.01)
    assert isinstance(decide(policy, target, asked, 0.05), Unavailable)


def test_nothing_is_waited_for_once_every_cluster_has_failed() -> None:
    policy = selector(load_config(document(cache_affinity_wait_ms=200)))
    target = FakeTarget(*clusters(2))
    asked = request(model_id="m", cache_affinity_key="k", input_tokens=1)
    assert isinstance(decide(policy, target, asked, 0.01, {"c0", "c1"}), Unavailable)


# --- explanations


def explained(elapsed_ms: float, scale: float = 1.0, wait_ms: int = 200, **near: Any) -> dict[str, Any]:
    policy = selector(load_config(document(cache_affinity_wait_ms=wait_ms, cache_affinity_input_tokens_scale=scale)))
    asked = request(model_id="m", cache_affinity_key="k", input_tokens=1)
    return explain(
        policy,
        asked,
        None,
        FakeTarget(*clusters(2, **near)),
        advertised=True,
        excluded=set(),
        now=elapsed_ms / 1000,
    )


def test_an_explanation_tells_the_group_and_the_wait() -> None:
    found = explained(50.0, **FULL)
    (member,) = found["affinity"]["group"]
    assert found["affinity"] == {
        "group": [member],
        "wait_ms": 200,
        "wait_left_ms": pytest.approx(150.0),
        "input_tokens_scale": 1.0,
    }
    assert found["outcome"] == {"kind": "wait", "wait_ms": pytest.approx(150.0)}
    text = render_text(found)
    assert f"affinity group: {member}; asked alone for 200 ms\n" in text
    assert "=> wait: by its age alone the request gets another answer in 150 ms\n" in text
    assert explained(60_000.0, wait_ms=70_000, **FULL)["outcome"] == {"kind": "unavailable"}
    assert "0.25 of the prompt counts there" in render_text(explained(0.0, 0.25))
    assert explained(0.0)["outcome"]["kind"] == "chosen"


def test_an_explanation_without_an_affinity_key_has_no_group() -> None:
    policy = selector(load_config(document()))
    found = explain(
        policy,
        request(model_id="m"),
        None,
        FakeTarget(*clusters(2)),
        advertised=True,
        excluded={"c0", "c1"},
        now=0.0,
    )
    assert "affinity" not in found
    assert found["outcome"] == {"kind": "unavailable"}


# --- requests


class Output(ResponseOutput):
    """Where a response goes, with the time at which its head came."""

    draining = False

    def __init__(self) -> None:
        self.out = b""
        self.at: float | None = None
        self.over = asyncio.Event()

    def write(self, data: bytes) -> None:
        if not self.out:
            self.at = asyncio.get_running_loop().time()
        self.out += data

    def date(self) -> bytes:
        return b"now"

    def response_done(self, *, keep_alive: bool) -> None:
        self.over.set()

    def response_broken(self, *, reset: bool) -> None:
        self.over.set()

    @property
    def status(self) -> int:
        return int(self.out.split(b" ", 2)[1])


class Rig:
    """A proxy with two workers, one of which is the only member of every affinity group."""

    def __init__(self, **settings: Any) -> None:
        self.loop = asyncio.get_running_loop()
        self.registry = Registry()
        self.metrics = Metrics()
        policy = Selector(load_config(document(**settings)), random.Random(1))
        self.proxy = Proxy(self.registry, policy, self.metrics, proxy_settings(), self.loop.time)
        self.workers = {name: self._worker(name) for name in ("w1", "w2")}
        target = [FakeCandidate(name, last_mean_input_tps=1000.0) for name in self.workers]
        choice = balancer({**ONE_OF_FIVE, **settings}, routing_key=None, model="m").choose(  # type: ignore[arg-type]
            request(model_id="m", cache_affinity_key="prefix", input_tokens=12), target, (), 0.0
        )
        self.member = self.workers[choice.candidate.cluster_id]
        (self.other,) = [one for one in self.workers.values() if one is not self.member]
        self.began = self.loop.time()

    def _worker(self, name: str) -> PlayedWorker:
        worker = PlayedWorker(name, direct=False, on_request=lambda exchange: exchange.answer())
        worker.registration = self.registry.begin(Identity(name, name, worker.url, None, reverse=True), worker)
        self.report(worker)
        return worker

    def report(self, worker: PlayedWorker, **stats: Any) -> None:
        figures = ModelStats(**{"last_mean_input_tps": 1000.0, **stats})
        now = self.loop.time()
        self.registry.apply(
            worker.registration, {"m": ModelUpdate(True, figures)}, connected=True, rtt_ns=1_000_000, now=now
        )

    def ask(self, **headers: str) -> Output:
        output = Output()
        first = {
            b"host": b"router",
            b"x-model": b"m",
            b"x-request-id": b"r-1",
            b"x-input-tokens": b"12",
            b"x-cache-affinity-key": b"prefix",
            **{name.replace("_", "-").encode(): value.encode() for name, value in headers.items()},
        }
        body = RequestBody(lambda _: None)
        asked = ClientRequest(
            b"POST",
            b"/v1/chat/completions",
            list(first.items()),
            first,
            http_1_0=False,
            keep_alive=True,
            received_at=self.loop.time(),
            body=body,
        )
        body.feed(b"{}")
        body.finish()
        self.proxy.handle(asked, Response(output, http_1_0=False, keep_alive=True, bodyless=False))
        return output

    def at_ms(self, output: Output) -> float:
        assert output.at is not None
        return (output.at - self.began) * 1000.0

    def selections(self, selection: str) -> float:
        return self.metrics.routing_selections_total.value(("", "m", "wait-and-widen", selection))


@pytest.mark.loop("virtual")
async def test_a_request_waits_for_its_group_and_then_goes_elsewhere() -> None:
    rig = Rig(cache_affinity_wait_ms=200)
    rig.report(rig.member, **FULL)
    with capture_logs() as logs:
        output = rig.ask()
        await output.over.wait()
    assert (output.status, len(rig.member.exchanges), len(rig.other.exchanges)) == (200, 0, 1)
    assert rig.at_ms(output) == pytest.approx(200.0, abs=1.0)
    waits = [line for line in logs if line["event"] == "waiting for routing bucket eligibility"]
    assert [line["remaining_ms"] for line in waits][:3] == [60_000, 59_975, 59_950]
    assert {(line["log_level"], line["model_id"]) for line in waits} == {("debug", "m")}
    assert rig.selections("fallback") == 1
    assert rig.metrics.routing_wait_seconds.count(("", "m")) == 1


@pytest.mark.loop("virtual")
async def test_a_member_that_frees_up_during_the_wait_gets_the_request() -> None:
    rig = Rig(cache_affinity_wait_ms=200)
    rig.report(rig.member, **FULL)
    output = rig.ask()
    rig.loop.call_later(0.05, rig.report, rig.member)
    await output.over.wait()
    assert (output.status, len(rig.member.exchanges), len(rig.other.exchanges)) == (200, 1, 0)
    assert 50.0 <= rig.at_ms(output) <= 76.0
    assert rig.selections("primary") == 1


@pytest.mark.loop("virtual")
async def test_a_failed_member_is_not_replaced_before_the_wait_is_over() -> None:
    rig = Rig(cache_affinity_wait_ms=200)
    rig.member.refusal = "no tunnel"
    output = rig.ask()
    await output.over.wait()
    assert (output.status, len(rig.other.exchanges)) == (200, 1)
    assert rig.at_ms(output) == pytest.approx(200.0, abs=1.0)


@pytest.mark.loop("virtual")
@pytest.mark.parametrize(("headers", "after_ms"), [({}, 60_000.0), ({"x_max_wait_ms": "50"}, 50.0)])
async def test_a_wait_ends_with_503(headers: dict[str, str], after_ms: float) -> None:
    rig = Rig(cache_affinity_wait_ms=70_000 if not headers else 200)
    for worker in rig.workers.values():
        rig.report(worker, **FULL)
    output = rig.ask(**headers)
    await output.over.wait()
    assert output.status == 503
    assert rig.at_ms(output) == pytest.approx(after_ms, abs=1.0)
    assert not rig.proxy.running


@pytest.mark.loop("virtual")
async def test_a_client_that_closes_during_the_wait_is_forgotten() -> None:
    rig = Rig(cache_affinity_wait_ms=200)
    rig.report(rig.member, **FULL)
    rig.ask()
    (waiting,) = rig.proxy.running
    waiting.client_gone()
    await asyncio.sleep(1)
    assert not rig.other.exchanges
    assert not rig.proxy.running
