"""Corners of the algorithms that no published decision reaches."""

import json
import re
from pathlib import Path

import pytest

from router.balancing import AdmissionRejected, Choice, Chosen, ConfigError, Selector, Unavailable, load_config
from router.balancing.catalog import builtin_algorithms
from router.balancing.config import BalancingConfig
from router.balancing.definition import Definition
from router.balancing.explain import explain
from support.balancing import FakeCandidate, FakeCluster, FakeTarget, balancer, request, selector

TPS = {"last_mean_input_tps": 100.0}


def pool(count, **stats):
    return [FakeCandidate(f"c{i}", **{**TPS, **stats}) for i in range(count)]


def test_a_kv_check_without_a_number_of_tokens_passes_everybody_over():
    chooser = balancer({"algorithm": "pulsar", "consider_kv_free_tokens": True})
    candidates = pool(3, kv_cache_free_tokens=100)
    assert chooser.choose(request(input_tokens=None), candidates, (), 0.0) is None
    assert chooser.choose(request(input_tokens=100), candidates, (), 0.0) is not None


@pytest.mark.parametrize("algorithm", ["pulsar", "pulsar-wait-and-widen"])
@pytest.mark.parametrize("count", [1, 4, 5, 12])
def test_a_ranking_without_anybody_feasible_is_walked_to_its_end(algorithm, count):
    candidates = pool(count)
    everybody = {c.cluster_id for c in candidates}
    chooser = balancer({"algorithm": algorithm})
    assert chooser.choose(request(), candidates, everybody, 0.0) is None
    # The last of the ranking is found at its true depth.
    last = [chooser.choose(request(), candidates, everybody - {c.cluster_id}, 0.0) for c in candidates]
    assert sorted(choice.rank_depth for choice in last) == list(range(1, count + 1))


def test_clusters_without_a_rate_stand_in_no_ranking_however_many_there_are():
    chooser = balancer({"algorithm": "pulsar"})
    candidates = [*pool(6), *(FakeCandidate(f"x{i}") for i in range(6))]
    ranked = [score_and_candidate[1] for score_and_candidate in chooser._ranking.ranked("key", candidates)]
    assert {c.cluster_id for c in ranked} == {f"c{i}" for i in range(6)}


def test_draws_survive_the_coming_and_going_of_clusters():
    chooser = balancer({"algorithm": "pulsar"})
    asked = request(cache_affinity_key="k")
    everybody = pool(8)
    order = [c.cluster_id for _, c in chooser._ranking.ranked("k", everybody)]
    chooser.choose(asked, everybody[:3], (), 0.0)
    assert [c.cluster_id for _, c in chooser._ranking.ranked("k", everybody[::-1])] == order


def test_no_band_with_capacity_is_no_choice():
    chooser = balancer(
        {"algorithm": "pulsar-wait-and-widen", "max_queue_time_floor_ms": 10, "max_queue_time_ceil_ms": 10}
    )
    assert chooser.choose(request(), pool(5, queued_input_size=1000), (), 0.0) is None


def test_an_affinity_ring_follows_clusters_that_come_and_go():
    settings = {"algorithm": "wait-and-widen", "cache_affinity_backend_selection_count": 1, "seed": "s"}
    used = balancer(settings)
    everybody = pool(6)
    for members in (everybody, everybody[:2], everybody[1:5], everybody):
        for key in ("a", "b", "c", "d"):
            asked = request(cache_affinity_key=key)
            fresh = balancer(settings).choose(asked, members, (), 0.0)
            assert used.choose(asked, members, (), 0.0) == fresh


def explain_now(policy, method):
    return explain(policy, request(), method, None, advertised=True, excluded=set(), now=0.0)


def test_only_two_algorithms_compare_and_by_ttft_unless_told_otherwise():
    policy, names = selector(), builtin_algorithms()
    told = {name: explain_now(policy, name)["algorithm"]["comparator"] for name in names}
    assert told == {**dict.fromkeys(names), "power-of-n": "ttft", "wait-and-widen": "ttft"}


def test_what_a_definition_requires_of_requests_is_kept():
    entry = {
        "algorithm": "pulsar",
        "seed": "s",
        "require_cache_affinity_key": True,
        "require_input_tokens": True,
        "consider_kv_free_tokens": True,
    }
    configured = load_config(json.dumps({"models": {"m": entry}}).encode()).models["m"].configured
    assert (configured.settings["seed"], configured.require_cache_affinity_key) == ("s", True)
    assert configured.settings["consider_kv_free_tokens"] is True
    assert not Definition("pulsar").require_cache_affinity_key


@pytest.mark.parametrize("algorithm", ["power-of-n", "round-robin", "random"])
def test_a_seed_is_refused_by_algorithms_without_one_also_when_made_in_code(algorithm):
    with pytest.raises(ConfigError, match=f"seed is not supported for {algorithm}"):
        Selector(BalancingConfig(Definition(algorithm, {"seed": "s"})), selector()._random)


def test_the_configuration_on_the_page_is_accepted():
    page = (Path(__file__).parents[2] / "docs" / "balancing.md").read_text()
    examples = re.findall(r"```json\n(.*?)```", page, re.DOTALL)
    assert examples
    for example in examples:
        Selector(load_config(example.encode()), selector()._random)


def test_a_number_too_large_for_any_float_is_refused():
    entry = {"algorithm": "random", "max_input_work_seconds": 10**400}
    with pytest.raises(ConfigError, match="number out of range"):
        load_config(json.dumps({"models": {"m": entry}}).encode())


def test_a_request_within_the_limit_of_queued_work_is_admitted():
    document = {"models": {"model-a": {"algorithm": "round-robin", "max_input_work_seconds": 2}}}
    policy = Selector(load_config(json.dumps(document).encode()), selector()._random)
    target = FakeTarget(FakeCandidate("a", queued_input_size=100, **TPS))

    def outcome(tokens):
        asked = request(input_tokens=tokens)
        return policy.select(
            policy.resolve(asked.model, None),
            asked,
            target,
            advertised=lambda: True,
            failed_backends=set(),
            failed_clusters=set(),
            now=0.0,
        )

    assert isinstance(outcome(100), Chosen)
    assert isinstance(outcome(101), AdmissionRejected)


class Stubborn:
    """An installed algorithm that ignores what it should leave out."""

    def __init__(self, settings, source):
        pass

    def balancer(self, routing_key, model):
        return self

    def choose(self, request, candidates, excluded, elapsed_ms):
        return Choice(candidates[0])


def test_an_algorithm_that_insists_on_a_cluster_without_a_worker_costs_one_request_and_no_more():
    policy = Selector(BalancingConfig(Definition("stubborn"), {}), selector()._random, {"stubborn": Stubborn})
    target = FakeTarget(FakeCandidate("a", cluster=FakeCluster([]), **TPS), FakeCandidate("b", **TPS))
    asked = request()
    outcome = policy.select(
        policy.resolve(asked.model, None),
        asked,
        target,
        advertised=lambda: True,
        failed_backends=set(),
        failed_clusters=set(),
        now=0.0,
    )
    assert isinstance(outcome, Unavailable)
