"""`pulsar-wait-and-widen`: the affinity group of a ranking, and bands of it that open one after the other."""

import json
from functools import cache
from typing import Any

import pytest

from router.balancing import Choice, Wait, load_config
from router.balancing.explain import explain
from router.operators.explain_command import render_text
from support.balancing import EARLIER, FakeCandidate, FakeTarget, balancer, request, selector

FULL = {"max_engine_concurrency": 1, "num_running_queries": 1}
HYBRID = {"algorithm": "pulsar-wait-and-widen", "ttft_bucket_size_ms": 1_000_000}
BOUNDED = {**HYBRID, "max_queue_time_floor_ms": 1000, "max_queue_time_ceil_ms": 1000}
ASKED = request(cache_affinity_key="prefix", input_tokens=100)
COUNT = 20
ALL = {f"c{index}" for index in range(COUNT)}


@cache
def ranking() -> list[str]:
    """The cluster ids, best first."""
    chooser = balancer({"algorithm": "pulsar"})
    found: list[str] = []
    while len(found) < COUNT:
        found.append(chooser.choose(ASKED, clusters(), set(found), 0.0).candidate.cluster_id)
    return found


def clusters(stats_by_id: dict[str, dict[str, Any]] | None = None, **stats: Any) -> list[FakeCandidate]:
    own = stats_by_id or {}
    return [
        FakeCandidate(name, **{"last_mean_input_tps": 1000.0, **stats, **own.get(name, {})})
        for name in sorted(ALL, key=lambda name: int(name[1:]))
    ]


def only_free(*ranks: int) -> list[FakeCandidate]:
    """All clusters are full, except those of these 1-based ranks."""
    order = ranking()
    return clusters({order[rank - 1]: {"num_running_queries": 0} for rank in ranks}, **FULL)


def wait_ms(found: object) -> float:
    assert isinstance(found, Wait)
    return found.seconds * 1000.0


def rank_of(found: object) -> int:
    assert isinstance(found, Choice)
    assert ranking()[found.rank_depth - 1] == found.candidate.cluster_id
    return found.rank_depth


def test_without_bounds_the_first_of_the_ranking_is_chosen_at_once_even_if_it_is_full() -> None:
    for settings in ({}, {"cache_affinity_wait_ms": 200, "cache_affinity_backend_selection_count": 3}):
        choice = balancer({**HYBRID, **settings}).choose(ASKED, only_free(2), (), 0.0)
        assert (rank_of(choice), choice.skipped_for_kv) == (1, False)


@pytest.mark.parametrize(
    ("elapsed_ms", "deepest"), [(100.0, 3), (199.0, 3), (200.0, 7), (299.0, 7), (300.0, 15), (400.0, COUNT)]
)
def test_bands_open_one_after_the_other(elapsed_ms: float, deepest: int) -> None:
    chooser = balancer({**BOUNDED, "cache_affinity_wait_ms": 100, "band_widen_interval_ms": 100})
    assert rank_of(chooser.choose(ASKED, only_free(deepest), (), elapsed_ms)) == deepest
    if deepest < COUNT:
        closed = chooser.choose(ASKED, only_free(deepest + 1), (), elapsed_ms)
        assert wait_ms(closed) == pytest.approx(100.0 - elapsed_ms % 100.0)


def test_before_the_wait_is_over_only_the_group_is_asked() -> None:
    chooser = balancer({**BOUNDED, "cache_affinity_wait_ms": 100, "cache_affinity_backend_selection_count": 2})
    assert wait_ms(chooser.choose(ASKED, only_free(3), (), 40.0)) == pytest.approx(60.0)
    assert rank_of(chooser.choose(ASKED, only_free(2), (), 40.0)) == 2
    assert rank_of(chooser.choose(ASKED, only_free(2, 3), (), 500.0)) == 2
    # A group of two, then bands of 2 and 4: ranks 3 and 4, then 5 to 8. The interval is the wait if it is not set.
    assert rank_of(chooser.choose(ASKED, only_free(4), (), 100.0)) == 4
    assert wait_ms(chooser.choose(ASKED, only_free(5), (), 100.0)) == pytest.approx(100.0)
    assert rank_of(chooser.choose(ASKED, only_free(8), (), 200.0)) == 8


@pytest.mark.parametrize("count", [0, 1, None])
def test_the_group_is_one_cluster_by_default(count: int | None) -> None:
    settings = {**BOUNDED, "cache_affinity_wait_ms": 100, "cache_affinity_backend_selection_count": count}
    assert wait_ms(balancer(settings).choose(ASKED, only_free(2), (), 0.0)) == pytest.approx(100.0)


def test_without_an_interval_everything_opens_after_the_wait() -> None:
    chooser = balancer({**BOUNDED, "cache_affinity_wait_ms": 100, "band_widen_interval_ms": 0})
    assert wait_ms(chooser.choose(ASKED, only_free(COUNT), (), 99.0)) == pytest.approx(1.0)
    assert rank_of(chooser.choose(ASKED, only_free(COUNT), (), 100.0)) == COUNT


def test_without_wait_and_interval_everything_is_open_at_once() -> None:
    assert rank_of(balancer(BOUNDED).choose(ASKED, only_free(COUNT), (), 0.0)) == COUNT
    assert rank_of(balancer(BOUNDED).choose(ASKED, only_free(1, 5), (), 0.0)) == 1
    assert balancer(BOUNDED).choose(ASKED, clusters(**FULL), (), 0.0) is None


def test_a_very_short_interval_opens_everything_soon() -> None:
    chooser = balancer({**BOUNDED, "band_widen_interval_ms": 1})
    assert rank_of(chooser.choose(ASKED, only_free(COUNT), (), 59_999.0)) == COUNT


def test_the_earlier_form_asks_all_bands_in_one_decision() -> None:
    earlier = balancer(BOUNDED, settings=EARLIER)
    assert rank_of(earlier.choose(ASKED, only_free(5), (), 0.0)) == 5
    # The less loaded one of a nearer band goes before any of a farther one.
    assert rank_of(earlier.choose(ASKED, only_free(3, 5), (), 0.0)) == 3
    assert earlier.choose(ASKED, clusters(**FULL), (), 0.0) is None
    assert earlier.choose(ASKED, clusters(), ALL, 0.0) is None
    assert earlier.choose(ASKED, [FakeCandidate("no-rate")], (), 0.0) is None


def test_clusters_outside_the_group_have_a_limit_of_their_own() -> None:
    order = ranking()
    load = {"max_engine_concurrency": 1, "num_running_queries": 2}
    candidates = clusters({order[0]: {**load, "num_running_queries": 9}}, **load)
    for settings, chosen in (({"fallback_max_queued": 2}, True), ({"max_queued": 2}, False)):
        found = balancer({**BOUNDED, **settings}).choose(ASKED, candidates, (), 0.0)
        assert isinstance(found, Choice) is chosen
    in_group = balancer({**BOUNDED, "max_queued": 2, "cache_affinity_backend_selection_count": 2})
    assert rank_of(in_group.choose(ASKED, candidates, (), 0.0)) == 2


def test_an_excluded_first_is_not_replaced_in_the_group() -> None:
    chooser = balancer({**HYBRID, "cache_affinity_wait_ms": 100})
    first = ranking()[0]
    assert wait_ms(chooser.choose(ASKED, clusters(), {first}, 10.0)) == pytest.approx(90.0)
    assert rank_of(chooser.choose(ASKED, clusters(), {first}, 100.0)) in (2, 3)
    assert wait_ms(chooser.choose(ASKED, clusters(), ALL - {ranking()[19]}, 100.0)) == pytest.approx(100.0)


def test_buckets_open_by_the_whole_age_in_the_group_and_by_the_age_since_the_wait_outside() -> None:
    order = ranking()
    settings = {**BOUNDED, "ttft_bucket_size_ms": 20, "cache_affinity_wait_ms": 100, "band_widen_interval_ms": 1000}
    # The full near cluster is the first bucket; the one with capacity is 80 ms farther, which takes 20 ms to open.
    near, far = {**FULL, "rtt_ns": 0}, {"rtt_ns": 80_000_000, "num_running_queries": 0}
    outside = clusters({order[0]: FULL, order[1]: near, order[2]: far}, **FULL)
    asked = request(cache_affinity_key="prefix")
    assert wait_ms(balancer(settings).choose(asked, outside, (), 110.0)) == pytest.approx(10.0)
    assert rank_of(balancer(settings).choose(asked, outside, (), 120.0)) == 3
    group = {**settings, "cache_affinity_backend_selection_count": 2}
    inside = clusters({order[0]: near, order[1]: far}, **FULL)
    assert wait_ms(balancer(group).choose(asked, inside, (), 10.0)) == pytest.approx(10.0)
    assert rank_of(balancer(group).choose(asked, inside, (), 20.0)) == 2


def test_a_discount_counts_for_the_group_only() -> None:
    order = ranking()
    settings = {**BOUNDED, "ttft_bucket_size_ms": 20, "cache_affinity_backend_selection_count": 2}
    asked = request(cache_affinity_key="prefix", input_tokens=100)
    candidates = [
        FakeCandidate(order[0], rtt_ns=0, last_mean_input_tps=2000.0, **FULL),
        FakeCandidate(order[1], rtt_ns=0, last_mean_input_tps=1000.0),
    ]
    # 50 ms and 100 ms: a locked bucket; a tenth of that: one bucket.
    assert wait_ms(balancer(settings).choose(asked, candidates, (), 0.0)) == pytest.approx(12.5)
    discounted = balancer({**settings, "cache_affinity_input_tokens_scale": 0.1})
    assert discounted.choose(asked, candidates, (), 0.0).candidate.cluster_id == order[1]
    # Outside the group the whole prompt counts.
    small = balancer(
        {**settings, "cache_affinity_backend_selection_count": 1, "cache_affinity_input_tokens_scale": 0.1}
    )
    by_rank = sorted(candidates, key=lambda one: order.index(one.cluster_id))
    first = small.choose(asked, [by_rank[0], FakeCandidate(order[1], rtt_ns=0, last_mean_input_tps=1000.0)], (), 0.0)
    assert wait_ms(first) == pytest.approx(12.5)


def test_depth_is_the_rank_and_a_skip_for_the_kv_cache_before_it_is_told() -> None:
    order = ranking()
    free, low = {"kv_cache_free_tokens": 1000}, {"kv_cache_free_tokens": 1}
    chooser = balancer({**HYBRID, "consider_kv_free_tokens": True, "n": 64})
    candidates = clusters({order[0]: low, order[1]: free}, kv_cache_capacity_tokens=1000)
    choice = chooser.choose(ASKED, candidates, (), 0.0)
    assert (choice.rank_depth, choice.skipped_for_kv) == (2, True)
    without_skip = chooser.choose(ASKED, clusters(**free), {order[0]}, 0.0)
    assert not without_skip.skipped_for_kv
    assert chooser.choose(ASKED, clusters(), (), 0.0) is None
    assert chooser.choose(ASKED, [FakeCandidate("no-rate", **free)], (), 0.0) is None


@pytest.mark.parametrize("algorithm", ["pulsar", "pulsar-wait-and-widen"])
def test_the_mean_rate_is_enough_to_stand_in_a_ranking(algorithm: str) -> None:
    for settings in ({}, {"rendezvous_weight": "last-mean-input-tps"}):
        found = balancer({"algorithm": algorithm, **settings}).choose(ASKED, clusters(), (), 0.0)
        assert rank_of(found) == 1


def explained(elapsed_ms: float, candidates: list[FakeCandidate], **settings: Any) -> dict[str, Any]:
    earlier = settings.pop("earlier", False)
    chosen = {"settings": EARLIER} if earlier else {}
    config = load_config(json.dumps({"models": {"model-a": {**BOUNDED, **settings}}}).encode(), **chosen)
    asked = request(cache_affinity_key="prefix", input_tokens=100, routing_key="rk-1")
    target = FakeTarget(*candidates)
    return explain(
        selector(config, **chosen), asked, None, target, advertised=True, excluded=set(), now=elapsed_ms / 1000
    )


@pytest.mark.parametrize(
    ("elapsed_ms", "opened", "next_ms"), [(40.0, 1, 60.0), (150.0, 3, 50.0), (200.0, 7, 100.0), (900.0, COUNT, None)]
)
def test_an_explanation_tells_what_is_open(elapsed_ms: float, opened: int, next_ms: float | None) -> None:
    found = explained(elapsed_ms, clusters(**FULL), cache_affinity_wait_ms=100, band_widen_interval_ms=100)
    affinity = found["affinity"]
    assert (affinity["group"], affinity["wait_ms"], affinity["open_clusters"]) == (ranking()[:1], 100, opened)
    assert affinity["next_band_in_ms"] == (None if next_ms is None else pytest.approx(next_ms))
    bands = {row["rank"]: row["band"] for row in found["candidates"]}
    assert [bands[rank] for rank in (1, 2, 3, 4, 7, 8, 15, 16)] == [0, 1, 1, 2, 2, 3, 3, 4]
    text = render_text(found)
    assert f"; {opened} of the ranking open now" in text
    assert ("the next band in" in text) is (next_ms is not None)
    assert found["outcome"]["kind"] == ("unavailable" if next_ms is None else "wait")


def test_an_explanation_of_the_earlier_form_has_bands_and_no_waits() -> None:
    found = explained(0.0, clusters(), earlier=True)
    assert "affinity" not in found
    bands = {row["rank"]: row["band"] for row in found["candidates"]}
    assert [bands[rank] for rank in (1, 2, 3, 4, 7, 8)] == [0, 1, 1, 2, 2, 3]


def test_an_explanation_without_a_ranking_has_no_group() -> None:
    found = explained(0.0, [FakeCandidate("no-rate")])
    assert "affinity" not in found
    assert found["outcome"] == {"kind": "unavailable"}
