"""The routing policy by behaviour: configuration, overrides, state per target, the driving loop, explanations."""

import json
import random
from collections import Counter

import pytest

from router.balancing import (
    AdmissionRejected,
    BalancingConfig,
    Choice,
    Chosen,
    ConfigError,
    MethodError,
    NotFound,
    Selector,
    Unavailable,
    load_config,
)
from router.balancing.algorithm import installed_algorithms
from router.balancing.catalog import Catalog, builtin_algorithms
from router.balancing.definition import Definition, build
from router.balancing.explain import explain
from router.balancing.sampling import sample
from router.balancing.settings import CURRENT
from router.operators.explain_command import render_text
from support.balancing import EARLIER, FakeCandidate, FakeCluster, FakeTarget, balancer, close, request, selector


def config(**document):
    return load_config(json.dumps(document).encode())


def choose(policy, target, asked=None, method=None, failed_backends=(), failed_clusters=(), now=0.0, advertised=False):
    asked = asked or request(input_tokens=10)
    return policy.select(
        policy.resolve(asked.model, method),
        asked,
        target,
        advertised=lambda: advertised,
        failed_backends=set(failed_backends),
        failed_clusters=failed_clusters if isinstance(failed_clusters, set) else set(failed_clusters),
        now=now,
    )


def names(*cluster_ids, **stats):
    return FakeTarget(*(FakeCandidate(name, last_mean_input_tps=100.0, **stats) for name in cluster_ids))


# --- configuration and overrides -------------------------------------------------------------------------------------


def test_without_a_file_power_of_n_runs_and_every_algorithm_may_be_asked_for():
    policy = selector()
    assert policy.resolve("m", None).algorithm == "power-of-n"
    for name in ("round-robin", "random", "pulsar", "wait-and-widen", "pulsar_wait_and_widen", "Groq-Multiregion"):
        assert policy.resolve("m", name).algorithm


def test_an_empty_file_offers_nothing_but_power_of_n():
    policy = selector(config())
    assert policy.resolve("m", "power_of_n").algorithm == "power-of-n"
    with pytest.raises(MethodError, match="is not configured for this model"):
        policy.resolve("m", "pulsar")
    with pytest.raises(MethodError, match="unknown routing method"):
        policy.resolve("m", "sticky")


def test_sample_counts_of_all_levels_are_kept_apart():
    policy = selector(
        config(
            default="random",
            request_algorithms={"power-of-n": {"algorithm": "power-of-n", "sample_count": 4}},
            models={
                "tuned": {"algorithm": "power-of-n", "sample_count": 8},
                "bare": {"algorithm": "power-of-two"},
                "shadowed": {
                    "algorithm": "power-of-n",
                    "sample_count": 8,
                    "request_algorithms": {"power-of-n": {"algorithm": "power-of-n", "sample_count": 64}},
                },
                "own": {
                    "algorithm": "random",
                    "request_algorithms": {"power-of-n": {"algorithm": "power-of-n", "sample_count": 64}},
                },
            },
        )
    )
    assert policy.resolve("unlisted", "power-of-n").settings["sample_count"] == 4
    assert policy.resolve("tuned", None).settings["sample_count"] == 8
    assert "sample_count" not in policy.resolve("bare", None).settings
    assert policy.resolve("shadowed", "power-of-n").settings["sample_count"] == 8
    assert policy.resolve("own", "power-of-n").settings["sample_count"] == 64
    assert policy.resolve("tuned", None).built.settings.comparator == "ttft"


def test_the_default_of_the_file_is_not_offered_to_a_model_with_an_entry_of_its_own():
    policy = selector(config(default="power-of-n", models={"m": "round-robin"}))
    with pytest.raises(MethodError, match="is not configured for this model"):
        policy.resolve("m", "power-of-n")


def test_a_definition_made_in_code_is_checked_when_it_is_built():
    for bad, text in (
        (Definition("power-of-n", {"sample_count": 0}), "power-of-n sample_count must be between 1 and 64"),
        (Definition("random", {"consider_kv_free_tokens": True}), "only for pulsar and pulsar-wait-and-widen"),
        (Definition("nobody-has-this"), "nobody-has-this"),
    ):
        with pytest.raises(ConfigError, match=text) as refused:
            build(bad, random.Random(0), Catalog())
        assert refused.value.stage == "build"


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"\xff", b"\xef\xbb\xbf{}", b"{} {}", b'{"default":1e999}', b"[" * 100_000, b'{"default":NaN}', b"7"],
)
def test_what_is_no_document_is_refused(content):
    with pytest.raises(ConfigError):
        load_config(content)


def test_a_configuration_is_swapped_whole_or_not_at_all():
    policy = selector(config(default="round-robin"))
    running = policy.resolve("m", None)
    with pytest.raises(ConfigError):
        policy.replace_config(config(request_algorithms={"random": "round-robin"}))
    assert policy.resolve("m", None) is running
    policy.replace_config(config(default="random"))
    assert policy.resolve("m", None).algorithm == "random"
    target = names("a", "b")
    kept = policy.select(
        running, request(), target, advertised=bool, failed_backends=set(), failed_clusters=set(), now=0.0
    )
    assert isinstance(kept, Chosen)  # a request that had resolved before goes on by what it resolved


def test_memory_of_replaced_configurations_is_dropped():
    policy = selector(config(default="round-robin"))
    target = names("a", "b")
    choose(policy, target)
    for _ in range(5):
        policy.replace_config(config(default="round-robin"))
        choose(policy, target)
    assert len(target.balancer_state) == 1


# --- memory per target and definition --------------------------------------------------------------------------------


def sequence(policy, target, count, method=None):
    return [choose(policy, target, method=method).candidate.cluster_id for _ in range(count)]


def test_targets_have_counters_of_their_own_and_a_new_generation_starts_anew():
    policy = selector(config(default="round-robin"))
    one, other = names("a", "b"), names("a", "b")
    assert sequence(policy, one, 1) + sequence(policy, other, 1) + sequence(policy, one, 1) == ["a", "a", "b"]
    assert sequence(policy, names("a", "b"), 1) == ["a"]


def test_the_header_that_names_the_configured_algorithm_shares_its_counter():
    policy = selector(config(default="round-robin"))
    target = names("a", "b")
    assert sequence(policy, target, 1) + sequence(policy, target, 1, "round_robin") == ["a", "b"]
    assert len(target.balancer_state) == 1


def test_an_override_counts_for_itself():
    policy = selector(config(request_algorithms={"round-robin": "round-robin"}))
    target = names("a", "b")
    assert sequence(policy, target, 3, "round-robin") == ["a", "b", "a"]


def test_a_decision_without_candidates_makes_no_balancer():
    policy = selector()
    target = FakeTarget()
    assert isinstance(choose(policy, target), NotFound)
    assert target.balancer_state == {}


# --- the driving loop ------------------------------------------------------------------------------------------------


def test_nobody_is_404_and_somebody_who_cannot_is_503():
    policy = selector()
    assert isinstance(choose(policy, None), NotFound)
    assert isinstance(choose(policy, None, advertised=True), Unavailable)
    assert isinstance(choose(policy, None, failed_backends={"b"}), Unavailable)


def test_a_cluster_without_a_backend_left_is_given_up_and_the_next_one_asked():
    policy = selector()
    target = names("a", "b")
    target.list[0].cluster = FakeCluster([])
    failed = set()
    for _ in range(10):
        outcome = choose(policy, target, failed_clusters=failed)
        assert outcome.candidate.cluster_id == "b"
    target.list[1].cluster = FakeCluster([])
    failed = set()
    assert isinstance(choose(policy, target, failed_clusters=failed), Unavailable)
    assert failed == {"a", "b"}


def test_admission_is_asked_before_the_algorithm_and_not_when_everybody_has_failed():
    policy = selector(config(models={"model-a": {"algorithm": "power-of-n", "max_input_work_seconds": 0.5}}))
    busy = names("a", queued_input_size=100)
    assert choose(policy, busy) == AdmissionRejected("input_work_limit_exceeded")
    idle_without_rate = FakeTarget(FakeCandidate("a"))
    assert choose(policy, idle_without_rate) == AdmissionRejected("input_work_capacity_unavailable")
    assert isinstance(choose(policy, busy, failed_clusters={"a"}), Unavailable)


def test_the_queue_estimate_for_the_worker_is_that_of_the_snapshot():
    policy = selector()
    target = FakeTarget(FakeCandidate("a", last_mean_input_tps=100.0, queue_time_estimate_ms_by_priority={"2": 7}))
    assert choose(policy, target, request(priority=3)).expected_queue_ms == 7
    assert choose(policy, FakeTarget(FakeCandidate("a", queued_input_size=1))).expected_queue_ms is None


def test_waiting_unlocks_farther_buckets():
    policy = selector(config(default="wait-and-widen"))
    near = FakeCandidate(
        "near", rtt_ns=20_000_000, last_mean_input_tps=1e9, max_engine_concurrency=1, num_running_queries=1
    )
    far = FakeCandidate("far", rtt_ns=60_000_000, last_mean_input_tps=1e9)
    target = FakeTarget(near, far)
    assert choose(policy, target, now=0.005).seconds == pytest.approx(0.005)
    assert choose(policy, target, now=0.010).candidate.cluster_id == "far"
    earlier = selector(config(default="wait-and-widen"), settings=EARLIER)
    assert isinstance(choose(earlier, target, now=0.005), Unavailable)
    assert choose(earlier, target, now=0.010).candidate.cluster_id == "far"


def test_kept_figures_follow_every_change_of_a_snapshot():
    chooser = balancer({"algorithm": "wait-and-widen", "n": 64, "comparator": "num-requests-queued"})
    candidates = [FakeCandidate(f"c{i}", last_mean_input_tps=100.0, queue_size=i) for i in range(4)]

    def chosen(excluded=()):
        return chooser.choose(request(), candidates, excluded, 0.0).candidate.cluster_id

    assert chosen() == "c0"
    candidates[0] = FakeCandidate("c0", last_mean_input_tps=100.0, queue_size=9)
    assert chosen() == "c1"
    assert chosen({"c1"}) == "c2"
    candidates[1] = FakeCandidate("c1", last_mean_input_tps=100.0, max_engine_concurrency=1, num_running_queries=1)
    assert chosen() == "c2"
    for i in range(4):
        candidates[i] = FakeCandidate(
            f"c{i}", last_mean_input_tps=100.0, max_engine_concurrency=1, num_running_queries=1
        )
    assert chooser.choose(request(), candidates, (), 0.0) is None
    for priority in range(20):  # more priorities than are kept
        assert chooser.choose(request(priority=priority), [FakeCandidate("x", last_mean_input_tps=1.0)], (), 0.0)


@pytest.mark.parametrize(("count", "excluded", "size"), [(12, 2, 3), (12, 0, 6), (5, 2, 2), (9, 1, 8), (3, 3, 2)])
def test_every_sample_is_as_likely_as_every_other(count, excluded, size):
    candidates = [FakeCandidate(f"c{i}") for i in range(count)]
    barred = {f"c{i}" for i in range(excluded)} | {"left-long-ago"}
    allowed = {c.cluster_id for c in candidates} - barred
    wanted = min(size, len(allowed))
    rounds, source = 4000, random.Random(7)
    first, drawn = Counter(), Counter()
    for _ in range(rounds):
        found = [c.cluster_id for c in sample(candidates, barred, size, source)]
        assert len(set(found)) == len(found) == wanted
        assert allowed.issuperset(found)
        first.update(found[:1])
        drawn.update(found)
    for name in allowed:
        assert close(first[name] / rounds, 1 / len(allowed), rounds)
        assert close(drawn[name] / rounds, wanted / len(allowed), rounds)


def test_affinity_is_sticky_survives_exclusion_and_spills_when_full():
    settings = {"algorithm": "wait-and-widen", "cache_affinity_backend_selection_count": 1, "seed": "s"}
    chooser = balancer(settings, settings=EARLIER)
    candidates = [FakeCandidate(f"c{i}", last_mean_input_tps=100.0) for i in range(5)]
    asked = request(cache_affinity_key="prefix", input_tokens=1)

    def chosen(excluded=()):
        return chooser.choose(asked, candidates, excluded, 0.0).candidate.cluster_id

    first = chosen()
    assert {chosen() for _ in range(20)} == {first}
    second = chosen({first})
    assert second != first
    assert {chosen({first}) for _ in range(20)} == {second}
    index = int(first[1:])
    candidates[index] = FakeCandidate(first, last_mean_input_tps=100.0, max_engine_concurrency=1, num_running_queries=1)
    assert chosen() != first


def test_long_affinity_keys_work_and_are_not_kept():
    chooser = balancer({"algorithm": "pulsar"})
    candidates = [FakeCandidate(f"c{i}", last_mean_input_tps=100.0) for i in range(3)]
    asked = request(cache_affinity_key="k" * 257)
    assert len({chooser.choose(asked, candidates, (), 0.0).candidate.cluster_id for _ in range(5)}) == 1
    assert not chooser._ranking._draws
    for i in range(5000):
        chooser.choose(request(cache_affinity_key=f"key-{i}"), candidates, (), 0.0)
    assert len(chooser._ranking._draws) == 4096


def test_departed_clusters_leave_the_kept_figures_of_a_key():
    chooser = balancer({"algorithm": "pulsar"})
    asked = request(cache_affinity_key="k")
    for generation in range(100):
        chooser.choose(asked, [FakeCandidate(f"g{generation}-{i}", last_mean_input_tps=1.0) for i in range(4)], (), 0.0)
    assert len(chooser._ranking._draws["k"][1]) == 4


# --- third-party algorithms ------------------------------------------------------------------------------------------


class FirstById:
    """The example of docs/balancing.md: always the smallest id."""

    def __init__(self, settings, source):
        del source
        self.reverse = bool(settings.get("reverse"))

    def balancer(self, routing_key, model):
        return self

    def choose(self, request, candidates, excluded, elapsed_ms):
        left = [c for c in candidates if c.cluster_id not in excluded]
        return Choice(sorted(left, key=lambda c: c.cluster_id, reverse=self.reverse)[0]) if left else None


class Point:
    name = "first-by-id"

    def load(self):
        return FirstById


def test_an_installed_package_adds_an_algorithm_with_settings_of_its_own():
    plugins = installed_algorithms([Point()])
    document = {
        "default": "first-by-id",
        "models": {"m": {"algorithm": "first-by-id", "reverse": True}},
    }
    policy = Selector(load_config(json.dumps(document).encode(), plugins), random.Random(0), plugins)
    target = names("b", "a", "c")
    assert choose(policy, target).candidate.cluster_id == "a"
    asked = request(model_id="m")
    assert choose(policy, target, asked).candidate.cluster_id == "c"
    assert policy.knows("First_By_Id")
    with pytest.raises(ConfigError):
        load_config(json.dumps(document).encode())


# --- explanations ----------------------------------------------------------------------------------------------------


def explained(policy, target, asked=None, method=None, excluded=(), now=0.0, advertised=True):
    return explain(
        policy,
        asked or request(input_tokens=10),
        method,
        target,
        advertised=advertised,
        excluded=set(excluded),
        now=now,
    )


def test_explaining_round_robin_tells_the_next_one_and_does_not_advance():
    policy = selector(config(default="round-robin"))
    target = names("a", "b")
    sequence(policy, target, 1)
    for _ in range(3):
        assert explained(policy, target)["outcome"]["cluster_id"] == "b"
    assert sequence(policy, target, 1) == ["b"]
    assert all(candidate.cluster.picks <= 1 for candidate in target.list)


@pytest.mark.parametrize("algorithm", builtin_algorithms())
@pytest.mark.parametrize("asked_before", [False, True])
@pytest.mark.parametrize("settings", [CURRENT, EARLIER], ids=["current", "earlier"])
def test_asking_changes_no_decision_that_follows(algorithm, asked_before, settings):
    own = {"cache_affinity_backend_selection_count": 2} if algorithm == "wait-and-widen" else {}

    def decisions(*, asking):
        policy = selector(config(models={"model-a": {"algorithm": algorithm, **own}}), seed=3, settings=settings)
        target = FakeTarget(*(FakeCandidate(f"c{i}", last_mean_input_tps=100.0) for i in range(7)))
        asked = request(input_tokens=10)
        found = [choose(policy, target, asked)] if asked_before else []
        for step in range(30):
            asked = request(input_tokens=10, cache_affinity_key=f"key-{step % 4}")
            if asking:
                before = dict(target.balancer_state)
                assert explained(policy, target, asked)["outcome"]["kind"] == "chosen"
                assert target.balancer_state == before
            found.append(choose(policy, target, asked))
        return [choice.candidate.cluster_id for choice in found], [c.cluster.picks for c in target.list]

    assert decisions(asking=True) == decisions(asking=False)


def test_every_rule_that_keeps_a_candidate_out_is_named():
    policy = selector(
        config(
            default="pulsar-wait-and-widen",
            models={
                "w": {"algorithm": "wait-and-widen", "max_queue_time_floor_ms": 5, "max_queue_time_ceil_ms": 5},
                "k": {"algorithm": "pulsar", "consider_kv_free_tokens": True},
            },
        )
    )
    target = FakeTarget(
        FakeCandidate("fine", last_mean_input_tps=100.0, kv_cache_free_tokens=100),
        FakeCandidate("no-rate"),
        FakeCandidate("full", last_mean_input_tps=100.0, max_engine_concurrency=1, num_running_queries=1),
        FakeCandidate("queued", last_mean_input_tps=100.0, queued_input_size=500),
        FakeCandidate("tried", last_mean_input_tps=100.0),
        FakeCandidate("low", last_mean_input_tps=100.0, kv_cache_free_tokens=1),
    )

    def rules(model):
        document = explained(policy, target, request(model_id=model, input_tokens=10), excluded={"tried"})
        return {row["cluster_id"]: row["rule"] for row in document["candidates"]}

    assert rules("w") == {
        "fine": "eligible",
        "no-rate": "no finite TTFT",
        "full": "engine full",
        "queued": "queue over SLO",
        "tried": "retry-excluded",
        "low": "eligible",
    }
    assert rules("k")["no-rate"] == "no valid throughput"
    assert rules("k")["low"] == "KV low"
    assert rules("k")["full"] == "KV missing"
    assert rules("other")["full"] == "engine full"


def test_an_explanation_agrees_with_the_decision_and_can_be_read_by_humans():
    policy = selector(config(default="pulsar", models={"lim": {"algorithm": "random", "max_input_work_seconds": 1}}))
    target = names("a", "b", "c")
    asked = request(cache_affinity_key="k", input_tokens=10)
    document = explained(policy, target, asked)
    assert document["outcome"]["cluster_id"] == choose(policy, target, asked).candidate.cluster_id
    assert [row["rank"] for row in document["candidates"]].count(1) == 1
    assert f"=> {document['outcome']['cluster_id']}" in render_text(document)
    busy = names("a", queued_input_size=1000)
    refused = explained(policy, busy, request(model_id="lim"))
    assert refused["outcome"] == {"kind": "rejected", "reason": "input_work_limit_exceeded"}
    assert "input_work_limit_exceeded" in render_text(refused)
    assert explained(policy, None)["outcome"]["kind"] == "unavailable"
    assert "404" in render_text(explained(policy, None, advertised=False))
    nobody = explained(policy, FakeTarget(FakeCandidate("a")), request(max_wait_ms=10, input_tokens=1))
    assert nobody["outcome"]["kind"] == "wait"
    assert BalancingConfig().model_overrides == {}.keys()
