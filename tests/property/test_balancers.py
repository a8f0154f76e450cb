"""Balancers against slow models written from their description: who may win, and who must."""

import math

from hypothesis import given
from hypothesis import strategies as st

from router.balancing import Choice, Wait
from router.balancing.estimates import duration_ms
from router.balancing.hashing import affinity_field, cluster_field, hash64, prefix
from support.balancing import FakeCandidate, balancer, request

RATES = st.sampled_from([0.0, -1.0, math.nan, math.inf, 0.5, 10.0, 100.0, 100.0, 5000.0])
COUNTS = st.integers(0, 4)


@st.composite
def pools(draw):
    count = draw(st.integers(1, 9))
    return [
        FakeCandidate(
            f"c{index}",
            rtt_ns=draw(st.sampled_from([0, 1_000_000, 5_000_000, 30_000_000, 90_000_000])),
            last_mean_input_tps=draw(RATES),
            queue_size=draw(COUNTS),
            queued_input_size=draw(st.sampled_from([0, 1, 50, 1000])),
            num_running_queries=draw(COUNTS),
            max_engine_concurrency=draw(COUNTS),
            kv_cache_free_tokens=draw(st.sampled_from([0, 5, 100])),
            kv_cache_capacity_tokens=draw(st.sampled_from([0, 100])),
            queue_time_estimate_ms_by_priority=draw(
                st.dictionaries(st.integers(0, 4).map(str), st.integers(0, 200), max_size=3)
            ),
        )
        for index in range(count)
    ]


REQUESTS = st.builds(
    lambda tokens, priority, key, slo: request(
        input_tokens=tokens, priority=priority, cache_affinity_key=key, request_slo_ms=slo
    ),
    st.sampled_from([0, 1, 10, 200]),
    st.integers(0, 5),
    st.sampled_from([None, "a", "b", "prefix"]),
    st.sampled_from([None, 0, 1000]),
)
EXCLUDED = st.sets(st.integers(0, 9).map(lambda index: f"c{index}"), max_size=4)


def tps(c):
    return c.last_mean_input_tps if math.isfinite(c.last_mean_input_tps) and c.last_mean_input_tps > 0 else 0.0


def seconds(work, rate):
    return 0.0 if not work else (work / rate if rate else math.inf)


def queue(c, asked):
    reported = [
        c.queue_time_estimate_ms_by_priority[k]
        for k in sorted(c.queue_time_estimate_ms_by_priority)
        if k <= asked.priority
    ]
    if c.queue_time_estimate_ms_by_priority:
        return float(reported[-1]) if reported else 0.0
    if not c.queued_input_size:
        return 0.0
    return float(math.ceil(c.queued_input_size / tps(c) * 1000.0)) if tps(c) else math.inf


def ttft(c, asked, *, no_queue=False, no_prefill=False):
    total = duration_ms(c.rtt_ns) + (0.0 if no_queue else queue(c, asked))
    return total + (0.0 if no_prefill else seconds(asked.input_tokens, tps(c)) * 1000.0)


def eligible(pool, excluded):
    return [c for c in pool if c.cluster_id not in excluded]


@given(pools(), REQUESTS, EXCLUDED, st.integers(1, 64), st.integers(0, 1000))
def test_power_of_n_never_takes_one_that_must_lose(pool, asked, excluded, samples, seed):
    choice = balancer({"algorithm": "power-of-n", "sample_count": samples}, seed).choose(asked, pool, excluded, 0.0)
    left = eligible(pool, excluded)
    if not left:
        assert choice is None
        return
    scores = sorted(ttft(c, asked) for c in left)
    # Among a sample of k the winner beats or equals k - 1 others.
    assert ttft(choice.candidate, asked) <= scores[len(left) - min(samples, len(left))]
    assert choice.candidate in left
    assert (choice.rank_depth, choice.skipped_for_kv) == (1, False)


@given(pools(), EXCLUDED, st.integers(0, 1000))
def test_random_and_round_robin_take_only_the_eligible(pool, excluded, seed):
    left = eligible(pool, excluded)
    chance = balancer({"algorithm": "random"}, seed).choose(request(), pool, excluded, 0.0)
    assert (chance and chance.candidate) in (left or [None])
    turns = balancer({"algorithm": "round-robin"})
    found = [turns.choose(request(), pool, excluded, 0.0) for _ in range(2 * len(left))]
    assert [choice.candidate for choice in found] == left * 2


@given(
    pools(),
    REQUESTS,
    EXCLUDED,
    st.sampled_from([0, 20, 1000]),
    st.sampled_from([0.0, 0.25, 2.0]),
    st.sampled_from([0.0, 10.0, 500.0]),
    st.booleans(),
    st.booleans(),
    st.sampled_from([None, 0, 60]),
    st.integers(0, 2),
)
def test_wait_and_widen_takes_the_best_of_what_is_open(
    pool, asked, excluded, bucket, factor, elapsed, no_queue, no_prefill, limit, slack
):
    settings = {
        "algorithm": "wait-and-widen",
        "n": 64,
        "ttft_bucket_size_ms": bucket,
        "next_bucket_unlock_factor": factor,
        "ignore_queue_time": no_queue,
        "ignore_input_processing_time": no_prefill,
        "max_queued": slack,
    }
    if limit is not None:
        settings |= {"max_queue_time_floor_ms": limit, "max_queue_time_ceil_ms": limit}
    chooser = balancer(settings)
    choice = chooser.choose(asked, pool, excluded, elapsed)
    left = [c for c in eligible(pool, excluded) if limit is None or queue(c, asked) <= limit]
    distance = {c: ttft(c, asked, no_queue=no_queue, no_prefill=no_prefill) for c in left}
    opened, start, budget = [], None, elapsed
    for c in sorted(left, key=lambda c: (distance[c], c.cluster_id)):
        if math.isinf(distance[c]):
            break
        start = distance[c] if start is None else start
        if distance[c] - start > bucket:
            need = (distance[c] - start) * factor
            if budget < need:
                break
            budget, start = budget - need, distance[c]
        opened.append(c)
    able = [
        c for c in opened if not c.max_engine_concurrency or c.num_running_queries < c.max_engine_concurrency + slack
    ]
    if not able:
        later = [c for c in left if math.isfinite(distance[c]) and c not in opened]
        if all(c.max_engine_concurrency and c.num_running_queries >= c.max_engine_concurrency + slack for c in later):
            assert choice is None
            return
        # It may wait, and neither longer nor shorter than until a cluster with capacity is open.
        wait = choice.seconds * 1000.0
        assert isinstance(chooser.choose(asked, pool, excluded, elapsed + wait * 0.99), Wait)
        assert isinstance(chooser.choose(asked, pool, excluded, elapsed + wait * 1.01), Choice)
    else:
        best = min(ttft(c, asked) for c in able)
        assert choice.candidate in able
        assert ttft(choice.candidate, asked) == best


@given(pools(), REQUESTS, EXCLUDED, st.booleans(), st.sampled_from(["", "seed"]))
def test_pulsar_takes_the_first_feasible_of_its_ranking(pool, asked, excluded, consider_kv, seed):
    choice = balancer({"algorithm": "pulsar", "seed": seed, "consider_kv_free_tokens": consider_kv}).choose(
        asked, pool, excluded, 0.0
    )
    start = prefix(seed, "rk-1", "model-a") + affinity_field(asked.affinity_key)

    def score(c):
        return tps(c) / -math.log((float(hash64(start + cluster_field(c.cluster_id))) + 1.0) / 2.0**64)

    ranking = sorted((c for c in pool if tps(c)), key=lambda c: (-score(c), c.cluster_id))
    skipped = False
    for rank, c in enumerate(ranking, 1):
        if c.cluster_id in excluded:
            continue
        reported = c.kv_cache_free_tokens or c.kv_cache_capacity_tokens or c.kv_cache_used_tokens
        if consider_kv and (not reported or c.kv_cache_free_tokens < asked.input_tokens):
            skipped = True
            continue
        assert (choice.candidate, choice.rank_depth, choice.skipped_for_kv) == (c, rank, skipped)
        return
    assert choice is None


def feasible(c, asked, excluded, consider_kv):
    reported = c.kv_cache_free_tokens or c.kv_cache_capacity_tokens or c.kv_cache_used_tokens
    low = consider_kv and (not reported or c.kv_cache_free_tokens < asked.input_tokens)
    return c.cluster_id not in excluded and not low


@given(
    pools(),
    REQUESTS,
    EXCLUDED,
    st.booleans(),
    st.sampled_from([None, 60]),
    st.integers(0, 3),
    st.sampled_from([0, 100]),
    st.sampled_from([0, 50]),
    st.sampled_from([0.0, 99.0, 100.0, 149.0, 150.0, 1000.0]),
)
def test_the_hybrid_takes_only_what_is_open_and_gives_up_only_if_age_changes_nothing(
    pool, asked, excluded, consider_kv, limit, group, wait, interval, elapsed
):
    settings = {
        "algorithm": "pulsar-wait-and-widen",
        "consider_kv_free_tokens": consider_kv,
        "cache_affinity_backend_selection_count": group,
        "cache_affinity_wait_ms": wait,
        "band_widen_interval_ms": interval,
    }
    if limit is not None:
        settings |= {"max_queue_time_floor_ms": limit, "max_queue_time_ceil_ms": limit}
    chooser, order = balancer(settings), balancer({"algorithm": "pulsar"})
    ranking = []
    while (found := order.choose(asked, pool, [c.cluster_id for c in ranking], 0.0)) is not None:
        ranking.append(found.candidate)
    group = max(1, group)
    opened = group
    if elapsed >= wait:
        bands = int((elapsed - wait) // interval) + 1 if interval else 60
        opened = group + sum(2**band for band in range(1, bands + 1))
    choice = chooser.choose(asked, pool, excluded, elapsed)
    allowed = [c for c in ranking[:opened] if feasible(c, asked, excluded, consider_kv)]
    if isinstance(choice, Choice):
        assert choice.candidate in allowed
        assert ranking[choice.rank_depth - 1] is choice.candidate
        better = ranking[: choice.rank_depth - 1]
        assert choice.skipped_for_kv == any(
            c.cluster_id not in excluded and not feasible(c, asked, (), consider_kv) for c in better
        )
        if limit is None and ranking[0] in allowed:
            assert choice.candidate is ranking[0]
    elif isinstance(choice, Wait):
        assert choice.seconds > 0
        assert elapsed >= wait or choice.seconds <= (wait - elapsed) / 1000.0
    else:
        assert chooser.choose(asked, pool, excluded, 1e12) is None
