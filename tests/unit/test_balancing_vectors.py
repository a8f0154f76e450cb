"""Every vector of the routing policy: hashes, estimates, predicates, decisions, configuration, method header."""

import json
import math
import pathlib
import random

import pytest

from router.balancing import (
    ConfigError,
    MethodError,
    NotFound,
    Selector,
    Unavailable,
    Wait,
    load_config,
)
from router.balancing.admission import input_work_seconds, rejection
from router.balancing.affinity import AffinityRing
from router.balancing.algorithms.pulsar_wait_and_widen import bands
from router.balancing.catalog import Catalog
from router.balancing.config import BalancingConfig
from router.balancing.estimates import (
    comparators,
    has_capacity,
    queue_delay_ms,
    queue_estimate_ms,
    queue_limit_ms,
    ttft_ms,
)
from router.balancing.hashing import affinity_field, cluster_field, exponential, field, hash64, prefix
from router.balancing.ranking import RendezvousRanking
from router.balancing.selector import admission_candidates
from router.balancing.settings import CURRENT
from router.balancing.widening import WideningSettings, unlocked_count
from router.proxy.validation import InvalidRequestError, text
from router.proxy.validation import number as header_number
from support.balancing import (
    EARLIER,
    FakeCandidate,
    FakeTarget,
    balancer,
    candidate,
    close,
    number,
    request,
    selector,
    shares,
)
from tunnel_protocol.queue_time import queue_time_delta_ms

VECTORS = json.loads((pathlib.Path(__file__).parents[1] / "vectors" / "load-balancing.json").read_text())
ROUNDS = 1500


def each(name):
    return pytest.mark.parametrize("vector", VECTORS[name], ids=lambda v: v.get("name") or v.get("note"))


@each("xxh3_64_seed0")
def test_hash(vector):
    assert hash64(bytes.fromhex(vector["input_hex"])) == vector["hash_dec"]


@each("tagged_field")
def test_tagged_field(vector):
    assert field(vector["tag"].encode(), vector["value"].encode()).hex() == vector["encoded_hex"]


@each("pulsar_hash")
def test_pulsar_hash(vector):
    data = (
        prefix(vector["seed"], vector["routing_key"], vector["model_id"])
        + affinity_field(vector["cache_affinity_key"])
        + cluster_field(vector["cluster_id"])
    )
    assert data.hex() == vector["input_hex"]
    assert hash64(data) == vector["hash_dec"]
    assert exponential(vector["hash_dec"]) == vector["minus_ln"]


@each("pulsar_unit_interval")
def test_unit_interval(vector):
    drawn = exponential(vector["hash_dec"])
    if vector["score_with_weight_1"] is None:
        assert drawn is None
    else:
        assert 1.0 / drawn == pytest.approx(vector["score_with_weight_1"], rel=1e-12)


@each("pulsar_ranking")
def test_pulsar_ranking(vector):
    ranking = RendezvousRanking(prefix(vector["seed"], vector["routing_key"], vector["model_id"]))
    candidates = [
        FakeCandidate(c["cluster_id"], last_mean_input_tps=c["last_mean_input_tps"]) for c in vector["candidates"]
    ]
    ranked = list(ranking.ranked(vector["cache_affinity_key"], candidates))
    assert [(c.cluster_id, score) for score, c in ranked] == [
        (entry["cluster_id"], pytest.approx(entry["score"], rel=1e-12)) for entry in vector["ranking"]
    ]


def test_pulsar_shares_follow_throughput_and_removal_moves_only_its_own_keys():
    vector = VECTORS["pulsar_primary_share"]
    ranking = RendezvousRanking(prefix(vector["seed"], vector["routing_key"], vector["model_id"]))
    everyone = [FakeCandidate(name, last_mean_input_tps=tps) for name, tps in vector["weights"].items()]
    without_c = [c for c in everyone if c.cluster_id != "pulsar-c"]
    primaries, changed, not_its_own = {}, 0, 0
    for index in range(10_000):
        key = f"key-{index}"
        first = next(ranking.ranked(key, everyone))[1].cluster_id
        primaries[first] = primaries.get(first, 0) + 1
        if next(ranking.ranked(key, without_c))[1].cluster_id != first:
            changed += 1
            not_its_own += first != "pulsar-c"
    assert primaries == vector["primary_counts"]
    assert changed == vector["after_removing_pulsar_c"]["keys_that_changed_primary"]
    assert not_its_own == vector["after_removing_pulsar_c"]["of_which_primary_was_not_pulsar_c"]


@each("affinity_virtual_node_hash")
def test_virtual_node_hash(vector):
    data = (
        prefix(vector["seed"], vector["routing_key"], vector["model_id"])
        + cluster_field(vector["cluster_id"])
        + field(b"virtual_node", vector["virtual_node"].to_bytes(8, "little"))
    )
    assert data.hex() == vector["input_hex"]
    assert hash64(data) == vector["hash_dec"]


@each("affinity_key_hash")
def test_affinity_key_hash(vector):
    data = prefix(vector["seed"], vector["routing_key"], vector["model_id"]) + affinity_field(
        vector["cache_affinity_key"]
    )
    assert data.hex() == vector["input_hex"]
    assert hash64(data) == vector["hash_dec"]


@each("affinity_ring")
def test_affinity_ring(vector):
    ring = AffinityRing(prefix(vector["seed"], vector["routing_key"], vector["model_id"]), vector["virtual_nodes"])
    ring.preferred("", [FakeCandidate(name) for name in vector["cluster_ids"]], (), 1)
    assert [(f"{hashed:016x}", name) for hashed, name in ring.points()] == [
        (point["hash_hex"], point["cluster_id"]) for point in vector["ring"]
    ]


@each("affinity_selection")
def test_affinity_selection(vector):
    ring = AffinityRing(prefix(vector["seed"], vector["routing_key"], vector["model_id"]), vector["virtual_nodes"])
    candidates = [FakeCandidate(name) for name in vector["cluster_ids"]]
    found = ring.preferred(vector["cache_affinity_key"], candidates, set(vector["excluded"]), vector["selection_count"])
    assert [c.cluster_id for c in found] == vector["selected"]


@each("queue_time_delta_ms")
def test_queue_time_delta(vector):
    assert queue_time_delta_ms(vector["input_tokens"], number(vector["last_mean_input_tps"])) == vector["expected"]


@each("queue_estimate_for_priority")
def test_queue_estimate(vector):
    one = FakeCandidate("c", **vector["stats"])
    assert queue_estimate_ms(one, vector["priority"]) == vector["estimate_ms"]
    assert queue_delay_ms(one, vector["priority"]) == number(vector["queue_delay_ms"])


@each("ttft")
def test_ttft(vector):
    one = candidate(vector["candidate"])
    found = ttft_ms(
        one,
        vector["input_tokens"],
        vector["priority"],
        ignore_queue=vector["ignore_queue_time"],
        ignore_prefill=vector["ignore_input_processing_time"],
    )
    assert found == number(vector["ttft_ms"])
    assert queue_delay_ms(one, vector["priority"]) == number(vector["queue_ms"])


@each("comparator_scores")
def test_comparator_scores(vector):
    for name, score in comparators().items():
        for one in vector["candidates"]:
            found = score(candidate(one), vector["request"]["input_tokens"], vector["request"]["priority"])
            assert found == number(vector["scores"][name][one["cluster_id"]]), (name, one)


@each("input_work_admission")
def test_admission(vector):
    policy = selector(load_config(json.dumps({"models": {"m": vector["config"]}}).encode()))
    effective = policy.resolve("m", None)
    asked = request(vector["request"])
    counted = admission_candidates(
        effective, asked, [candidate(c) for c in vector["candidates"]], set(vector["request"].get("excluded", ()))
    )
    assert input_work_seconds(counted, asked.input_tokens) == vector["seconds"]
    assert rejection(counted, asked.input_tokens, effective.max_input_work_seconds) == vector["rejection_reason"]


@each("max_queue_time_ms")
def test_queue_limit(vector):
    floor, ceil = vector["floor_ms"], vector["ceil_ms"]
    limited = WideningSettings(max_queue_time_floor_ms=floor, max_queue_time_ceil_ms=ceil).limits_queue
    found = queue_limit_ms(floor, ceil, vector["request_slo_ms"], vector["elapsed_ms"]) if limited else None
    assert found == vector["expected_ms"]


@each("bucket_unlock")
def test_bucket_unlock(vector):
    times = [number(time) for time in vector["sorted_ttft_ms"]]
    found = unlocked_count(
        times, vector["elapsed_ms"], vector["ttft_bucket_size_ms"], vector["next_bucket_unlock_factor"]
    )
    assert found == vector["unlocked"]


@each("capacity_filter")
def test_capacity(vector):
    one = FakeCandidate(
        "c",
        num_running_queries=vector["num_running_queries"],
        max_engine_concurrency=vector["max_engine_concurrency"],
    )
    assert has_capacity(one, vector["max_queued"]) is vector["has_capacity"]


@each("pulsar_wait_and_widen_bands")
def test_bands(vector):
    assert [list(band) for band in bands(vector["ranked_count"])] == vector["bands_zero_based_half_open"]


@each("selection")
def test_selection(vector):
    # Those of algorithms that wait are of the release line 0.11, which does not.
    waits = vector["config"]["algorithm"].endswith(("wait-and-widen", "multiregion"))
    settings = EARLIER if waits else CURRENT
    asked = request(vector["request"])
    candidates = [candidate(c) for c in vector["candidates"]]
    chooser = balancer(vector["config"], routing_key=asked.routing_key, model=asked.model, settings=settings)
    excluded = set(vector["request"]["excluded"])

    def choose():
        choice = chooser.choose(asked, candidates, excluded, float(vector["request"]["elapsed_ms"]))
        return choice and (choice.candidate.cluster_id, choice.rank_depth, choice.skipped_for_kv)

    if vector["expect"] is None:
        assert all(choose() is None for _ in range(20))
        return
    expected = {(e["cluster_id"], e["rank_depth"], e["kv_skip"]): e["p"] for e in vector["expect"]}
    found = shares(choose, ROUNDS if len(expected) > 1 else 50)
    assert found.keys() == expected.keys()
    for choice, p in expected.items():
        assert close(found[choice], p, ROUNDS), (choice, found[choice], p)


@each("round_robin_clusters")
def test_round_robin(vector):
    chooser = balancer({"algorithm": "round-robin"})
    candidates = [FakeCandidate(name) for name in vector["candidates"]]
    calls = vector.get("calls") or [
        {"excluded": vector["excluded"], "selected": name} for name in vector["sequence"] or [None]
    ]
    for call in calls:
        choice = chooser.choose(request(), candidates, set(call["excluded"]), 0.0)
        assert (choice and choice.candidate.cluster_id) == call["selected"]


@each("routing_method_header")
def test_method_header(vector):
    requested = text(vector["value"].encode()) if vector["value"] is not None else None
    policy = selector()
    if "error" in vector["expected"]:
        assert requested is None or not policy.knows(requested)
    else:
        assert policy.resolve("m", requested).algorithm == vector["expected"]["algorithm"]
        assert requested == vector["expected"]["requested"]


@each("config_algorithm_names")
def test_names_in_files(vector):
    assert Catalog().from_file(vector["name"]) == vector["algorithm"]


@each("numeric_header")
def test_numeric_header(vector):
    value = None if vector["value"] is None else vector["value"].encode()
    limit = (1 << vector["bits"]) - 1
    if vector["expected"] == "400":
        with pytest.raises(InvalidRequestError) as refused:
            header_number(value, limit, "x")
        assert refused.value.status == 400
    else:
        found = header_number(value, limit, "x")
        assert found == (None if vector["expected"] == "absent" else vector["expected"])


def resolution(policy, model, header):
    if header is not None and (text(header.encode()) is None or not policy.knows(text(header.encode()))):
        return {"status": 400, "reason": "unknown"}
    try:
        return {"algorithm": policy.resolve(model, None if header is None else text(header.encode())).algorithm}
    except MethodError as error:
        return {"status": 400, "reason": {"unavailable": "unavailable", "unknown_method": "unknown"}[error.code]}


@each("routing_method_resolution_without_config_file")
def test_resolution_without_a_file(vector):
    assert resolution(selector(), "any", vector["header"]) == vector["expected"]


@each("routing_method_resolution")
def test_resolution(vector):
    policy = selector(load_config(json.dumps(vector["config"]).encode()))
    found = resolution(policy, vector["model"], vector["header"])
    wanted = dict(vector["expected"])
    settings = wanted.pop("settings", None) or {
        k: wanted.pop(k) for k in list(wanted) if k not in ("algorithm", "status", "reason")
    }
    assert found == wanted
    if settings and "algorithm" in wanted:
        header = vector["header"]
        resolved = policy.resolve(vector["model"], None if header is None else text(header.encode()))
        for name, value in settings.items():
            assert resolved.settings.get(name, {"sample_count": 2}.get(name)) == value


@each("config")
def test_config(vector):
    content = vector["json"].encode()

    def load():
        return Selector(load_config(content), random.Random(0))

    if vector["accepted"]:
        load()
        return
    with pytest.raises(ConfigError) as refused:
        load()
    if vector.get("stage") in ("parse", "build"):
        assert refused.value.stage == vector["stage"]
    if vector["error_contains"]:
        assert vector["error_contains"] in str(refused.value)


@each("no_choice_outcome")
def test_no_choice(vector):
    # Clusters that the algorithm declines: no rate, and an algorithm that insists on one.
    count, eligible = vector["num_candidates"], vector["eligible_candidate_count"]
    target = FakeTarget(*(FakeCandidate(f"c{i}") for i in range(count)))
    policy = selector()
    asked = request(max_wait_ms=1000 if vector["retry_allowed"] else None, input_tokens=10)
    failed_clusters = {f"c{i}" for i in range(eligible, count)} | (
        {"gone"} if vector["failed_cluster_count"] and count == 0 else set()
    )
    outcome = policy.select(
        policy.resolve("m", "pulsar"),
        asked,
        target if count else None,
        advertised=lambda: vector["target_registered"],
        failed_backends={"b"} if vector["failed_backend_count"] else set(),
        failed_clusters=failed_clusters,
        now=0.0,
    )
    expected = {"retry-routing": Wait, "503": Unavailable, "404": NotFound}[vector["outcome"]]
    assert isinstance(outcome, expected)


@each("routing_wait_deadline_ms")
def test_wait_deadline(vector):
    policy = selector()
    target = FakeTarget(FakeCandidate("c"))
    asked = request(max_wait_ms=vector["x_max_wait_ms"], input_tokens=10)

    def at(now_ms):
        return policy.select(
            policy.resolve("m", "pulsar"),
            asked,
            target,
            advertised=lambda: True,
            failed_backends=set(),
            failed_clusters=set(),
            now=now_ms / 1000,
        )

    deadline = vector["deadline_after_ms"]
    if not deadline:
        assert isinstance(at(0), Unavailable)
        return
    assert isinstance(at(deadline - 1), Wait)
    assert isinstance(at(deadline + 0.001), Unavailable)


def test_sleeps_are_whole_milliseconds_between_the_bounds_and_never_beyond_the_deadline():
    bounds = VECTORS["retry_sleep_ms"]
    policy = selector()
    target = FakeTarget(FakeCandidate("c"))

    def wait(max_wait_ms, now_ms):
        outcome = policy.select(
            policy.resolve("m", "pulsar"),
            request(max_wait_ms=max_wait_ms, input_tokens=1),
            target,
            advertised=lambda: True,
            failed_backends=set(),
            failed_clusters=set(),
            now=now_ms / 1000,
        )
        assert isinstance(outcome, Wait)
        return outcome.seconds * 1000

    slept = {round(wait(60_000, 0), 6) for _ in range(400)}
    assert slept == set(range(bounds["minimum"], bounds["maximum"] + 1))
    assert math.isclose(wait(1000, 999.5), 0.5, rel_tol=1e-6)
    assert BalancingConfig().default_lb == "power-of-n"
