"""One routed cluster: aggregates, turns, reservations. Vectors: tests/vectors/load-balancing.json."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from router.registry import Backend, Identity, ModelStats, Registration, RoutedCluster, Snapshot, Target, TargetKey
from router.registry.exact_sum import ExactSum
from router.registry.mean_queue_times import PRIORITIES
from router.registry.registration import ClusterGeneration
from router.registry.settings import CURRENT, RegistrySettings
from tunnel_protocol.queue_time import queue_time_delta_ms
from tunnel_protocol.unsigned import MAX_U64

VECTORS: dict[str, Any] = json.loads((Path(__file__).parents[1] / "vectors" / "load-balancing.json").read_text())
MS = 1_000_000
EARLIER = RegistrySettings(adds_up_load=False, free_slots=False)


def model_stats(values: dict[str, Any]) -> ModelStats:
    values = dict(values)
    estimates = {int(k): v for k, v in values.pop("queue_time_estimate_ms_by_priority", {}).items()}
    labels = {key: tuple(values.pop(key, ())) for key in ("stats_capabilities", "stats_sources")}
    return ModelStats(queue_time_estimate_ms_by_priority=estimates, **labels, **values)


class Rig:
    """A target with one cluster."""

    def __init__(self, settings: RegistrySettings = CURRENT) -> None:
        self.target = Target(TargetKey(None, "m"), settings)
        self.generation = ClusterGeneration()
        self.registrations: dict[str, Registration] = {}
        self.now = 0.0

    def publish(self, server_id: str, rtt_ns: int = MS, *, now: float | None = None, **stats: Any) -> Backend:
        registration = self.registrations.get(server_id) or self.register(server_id)
        self.now += 1
        published = Backend(registration, model_stats(stats), rtt_ns, self.now if now is None else now)
        self.target.publish(published)
        return published

    def register(self, server_id: str) -> Registration:
        identity = Identity(server_id, "c", "quic://10.0.0.1:1", None, reverse=False)
        registration = Registration(identity, None, self.generation)  # type: ignore[arg-type]
        self.registrations[server_id] = registration
        return registration

    def withdraw(self, server_id: str) -> None:
        self.target.withdraw(self.registrations[server_id])

    @property
    def cluster(self) -> RoutedCluster:
        [snapshot] = self.target.candidates()
        return snapshot.cluster

    @property
    def snapshot(self) -> Snapshot:
        [snapshot] = self.target.candidates()
        return snapshot


@pytest.mark.parametrize("vector", VECTORS["cluster_aggregation"], ids=lambda vector: vector["note"])
def test_aggregates_like_the_vectors(vector: dict[str, Any]) -> None:
    rig = Rig(EARLIER)
    for server_id, backend in vector["backends"].items():
        rig.publish(server_id, backend["rtt_ns"], **backend["stats"])
    expected = vector["cluster"]
    assert (rig.snapshot.rtt_ns, rig.snapshot.active_backend_count) == (
        expected["rtt_ns"],
        expected["active_backend_count"],
    )
    assert_stats(rig.snapshot, expected["stats"])
    assert rig.cluster.stats_observed_at_unix_ms() == expected["stats"]["stats_observed_at_unix_ms"]
    assert list(rig.cluster.stats_capabilities()) == expected["stats"]["stats_capabilities"]
    assert list(rig.cluster.stats_sources()) == expected["stats"]["stats_sources"]


def assert_stats(snapshot: Snapshot, expected: dict[str, Any]) -> None:
    for name, value in expected.items():
        if name == "queue_time_estimate_ms_by_priority":
            assert list(snapshot.queue_time_estimate_ms_by_priority.items()) == sorted(
                (int(priority), ms) for priority, ms in value.items()
            )
        elif not name.startswith("stats_"):
            assert getattr(snapshot, name) == value, name


@pytest.mark.parametrize("vector", VECTORS["reservation_projection"], ids=lambda vector: vector["name"])
def test_projects_reservations_like_the_vectors(vector: dict[str, Any]) -> None:
    for read_between in (False, True):
        rig = Rig()
        published = rig.publish("w", **vector["base_stats"])
        for pending in vector["pending"]:
            if read_between:
                assert rig.snapshot
            assert rig.cluster.reserve(published, pending["input_tokens"], pending["priority"])
        assert_stats(rig.snapshot, vector["projected"])


@pytest.mark.parametrize("vector", VECTORS["rtt_mean_ns"], ids=lambda vector: str(vector["backend_rtt_ns"]))
def test_mean_round_trip_like_the_vectors(vector: dict[str, Any]) -> None:
    rig = Rig()
    for number, rtt_ns in enumerate(vector["backend_rtt_ns"]):
        rig.publish(f"w{number}", rtt_ns)
    assert rig.snapshot.rtt_ns == vector["expected"]


@pytest.mark.parametrize("vector", VECTORS["queue_time_delta_ms"])
def test_queue_time_delta_like_the_vectors(vector: dict[str, Any]) -> None:
    assert queue_time_delta_ms(vector["input_tokens"], float(vector["last_mean_input_tps"])) == vector["expected"]


@pytest.mark.parametrize("vector", VECTORS["round_robin_backends"])
def test_takes_turns_like_the_vectors(vector: dict[str, Any]) -> None:
    rig = Rig()
    for server_id in vector["insertion_order"]:
        rig.publish(server_id)
    for call in vector["calls"]:
        chosen = rig.cluster.pick(set(call["failed"]))
        assert chosen is not None
        assert chosen.inference_server_id == call["selected"]


def test_nobody_left_to_pick_does_not_move_the_turn() -> None:
    rig = Rig()
    rig.publish("a")
    rig.publish("b")
    assert rig.cluster.pick({"a", "b"}) is None
    chosen = rig.cluster.pick(frozenset())
    assert chosen is not None
    assert chosen.inference_server_id == "a"


def test_source_leaves_and_the_most_recent_other_takes_its_place() -> None:
    rig = Rig(EARLIER)
    rig.publish("a", 10 * MS, last_mean_input_tps=100, num_running_queries=11, now=1.0)
    rig.publish("b", num_running_queries=12, now=2.0)
    rig.publish("c", num_running_queries=13, now=2.0)
    rig.publish("d", num_running_queries=14, now=1.5)
    assert (rig.snapshot.num_running_queries, rig.snapshot.received_at) == (14, 1.5)
    rig.withdraw("a")
    assert rig.snapshot.num_running_queries == 14
    rig.withdraw("d")
    assert rig.snapshot.num_running_queries == 13
    rig.withdraw("c")
    assert rig.snapshot.num_running_queries == 12
    rig.withdraw("b")
    assert rig.target.candidates() == []


def test_out_of_order_workers_are_shown_sorted_and_summed_until_the_last_leaves() -> None:
    rig = Rig()
    rig.publish("b", 20 * MS, queue_size=2, queued_input_size=20)
    rig.publish("a", 10 * MS, queue_size=1, queued_input_size=10)
    assert [each.inference_server_id for each in rig.cluster.backends()] == ["a", "b"]
    assert (rig.snapshot.queue_size, rig.snapshot.queued_input_size, rig.snapshot.rtt_ns) == (3, 30, 15 * MS)
    rig.withdraw("a")
    assert (rig.snapshot.queue_size, rig.snapshot.rtt_ns) == (2, 20 * MS)
    held = rig.cluster
    rig.withdraw("b")
    assert held.pick(()) is None
    assert len(held) == 0
    assert held.stats_observed_at_unix_ms() == 0


def test_mean_round_trip_follows_additions_changes_and_removals() -> None:
    rig = Rig()
    rig.publish("a", 8 * MS)
    assert rig.snapshot.rtt_ns == 8 * MS
    rig.publish("b", 5 * MS)
    assert rig.snapshot.rtt_ns == 6_500_000
    rig.publish("b", 20 * MS)
    assert rig.snapshot.rtt_ns == 14 * MS
    rig.withdraw("b")
    assert rig.snapshot.rtt_ns == 8 * MS


def test_enormous_round_trips_average_exactly() -> None:
    rig = Rig()
    longest = MAX_U64 * 1_000_000_000 + 999_999_999
    for number, rtt_ns in enumerate((longest, longest - 3, longest - 5)):
        rig.publish(f"w{number}", rtt_ns)
    assert rig.snapshot.rtt_ns == longest - 3


def test_invalid_throughput_counts_for_nothing() -> None:
    rig = Rig()
    for number, tps in enumerate((math.nan, math.inf, -math.inf, -3.0, 0.0, 7.0)):
        rig.publish(f"w{number}", last_mean_input_tps=tps)
    assert rig.snapshot.last_mean_input_tps == 7.0
    rig.withdraw("w5")
    assert rig.snapshot.last_mean_input_tps == 0.0


def test_odd_output_throughput_shows_while_it_is_reported_and_not_after() -> None:
    rig = Rig(EARLIER)
    rig.publish("a", output_tps=2.5)
    rig.publish("b", output_tps=math.inf)
    assert rig.snapshot.output_tps == math.inf
    rig.publish("c", output_tps=math.nan)
    assert math.isnan(rig.snapshot.output_tps)
    rig.publish("b", output_tps=1.5)
    rig.withdraw("c")
    assert rig.snapshot.output_tps == 4.0


def test_summed_counters_stop_at_the_largest_value_of_the_wire() -> None:
    rig = Rig()
    for server_id in ("a", "b"):
        published = rig.publish(
            server_id,
            queue_size=MAX_U64,
            queued_input_size=MAX_U64,
            input_processing_queries=MAX_U64,
            output_generation_queries=MAX_U64,
            num_running_queries=MAX_U64,
            total_query_input_size=MAX_U64,
        )
    rig.cluster.reserve(published, 10, 0)
    shown = rig.snapshot
    assert {
        shown.queue_size,
        shown.queued_input_size,
        shown.input_processing_queries,
        shown.output_generation_queries,
        shown.num_running_queries,
        shown.total_query_input_size,
    } == {MAX_U64}
    rig.withdraw("b")
    rig.publish("a")
    assert rig.snapshot.queue_size == 0


def test_queue_time_estimates_are_ascending_however_they_were_sent() -> None:
    rig = Rig()
    rig.publish("w", queue_time_estimate_ms_by_priority={"9": 3, "0": 1, "4": 2})
    assert list(rig.snapshot.queue_time_estimate_ms_by_priority) == [0, 4, 9]


# Load of a shared cluster


@pytest.mark.parametrize(("settings", "running", "best"), [(CURRENT, 7, 80.0), (EARLIER, 4, 50.0)])
def test_load_of_a_shared_cluster_is_that_of_all_workers(settings: RegistrySettings, running: int, best: float) -> None:
    rig = Rig(settings)
    rig.publish("a", num_running_queries=3, total_query_input_size=30, max_output_tps=80.0)
    last = rig.publish("b", num_running_queries=4, total_query_input_size=40, max_output_tps=50.0)
    assert (rig.snapshot.num_running_queries, rig.snapshot.max_output_tps) == (running, best)
    assert rig.snapshot.total_query_input_size == 10 * running
    rig.cluster.reserve(last, 5, 0)
    assert rig.snapshot.num_running_queries == running + 1
    assert rig.snapshot.total_query_input_size == 10 * running + 5


def test_best_output_rate_follows_the_workers_that_are_there() -> None:
    rig = Rig()
    rig.publish("a", max_output_tps=80.0)
    rig.publish("b", max_output_tps=50.0)
    rig.publish("b", max_output_tps=60.0)
    assert rig.snapshot.max_output_tps == 80.0
    rig.publish("a", max_output_tps=70.0)
    rig.publish("c", max_output_tps=10.0)
    assert rig.snapshot.max_output_tps == 70.0
    rig.withdraw("a")
    assert rig.snapshot.max_output_tps == 60.0
    for odd in (math.nan, math.inf, -1.0):
        rig.publish("b", max_output_tps=odd)
        assert rig.snapshot.max_output_tps == 10.0


def test_only_valid_output_rates_are_added() -> None:
    rig = Rig()
    for number, rate in enumerate((2.5, math.inf, math.nan, -1.0, 0.0, 1.5)):
        rig.publish(f"w{number}", output_tps=rate)
    assert rig.snapshot.output_tps == 4.0
    rig.withdraw("w0")
    assert rig.snapshot.output_tps == 1.5


def queued(rate: float, **waits: int) -> dict[str, Any]:
    estimates = {name.removeprefix("p"): wait for name, wait in waits.items()}
    return {"last_mean_input_tps": rate, "queue_size": 1, "queue_time_estimate_ms_by_priority": estimates}


@pytest.mark.parametrize(("settings", "wait"), [(CURRENT, 1750), (EARLIER, 2000)])
def test_queue_times_of_a_shared_cluster_are_weighted_by_throughput(settings: RegistrySettings, wait: int) -> None:
    rig = Rig(settings)
    rig.publish("a", **queued(100.0, p0=1000))
    rig.publish("b", **queued(300.0, p0=2000))
    assert rig.snapshot.queue_time_estimate_ms_by_priority == {0: wait}
    rig.withdraw("a")
    assert rig.snapshot.queue_time_estimate_ms_by_priority == {0: 2000}


def test_a_priority_that_a_worker_does_not_report_waits_as_the_next_more_urgent_one() -> None:
    rig = Rig()
    rig.publish("a", **queued(1.0, p2=100, p6=50))
    rig.publish("b", **queued(1.0, p4=201))
    assert rig.snapshot.queue_time_estimate_ms_by_priority == {2: 50, 4: 151, 6: 126}
    assert list(rig.snapshot.queue_time_estimate_ms_by_priority) == [2, 4, 6]
    rig.publish("a", **queued(0.5, p2=100))
    assert rig.snapshot.queue_time_estimate_ms_by_priority == {2: 34, 4: 168}


@pytest.mark.parametrize("unknown", [{"queue_time_estimate_ms_by_priority": {}}, {"last_mean_input_tps": math.nan}])
@pytest.mark.parametrize("work", [{"queue_size": 1}, {"queue_size": 0, "queued_input_size": 9}])
def test_queue_times_are_left_out_while_those_of_queued_work_are_unknown(
    unknown: dict[str, Any], work: dict[str, int]
) -> None:
    rig = Rig()
    rig.publish("a", **queued(100.0, p0=1000))
    rig.publish("b", **{**queued(300.0, p0=2000), **unknown, **work})
    assert rig.snapshot.queue_time_estimate_ms_by_priority == {}
    rig.publish("b", **queued(300.0, p0=2000))
    assert rig.snapshot.queue_time_estimate_ms_by_priority == {0: 1750}


def test_queue_times_need_a_throughput_and_a_priority() -> None:
    rig = Rig()
    for server_id in ("a", "b"):
        rig.publish(server_id, queue_time_estimate_ms_by_priority={"0": 7})
    assert rig.snapshot.queue_time_estimate_ms_by_priority == {}
    for server_id in ("a", "b"):
        rig.publish(server_id, last_mean_input_tps=1.0)
    assert rig.snapshot.queue_time_estimate_ms_by_priority == {}


def test_a_worker_without_queued_work_counts_as_one_that_does_not_wait() -> None:
    rig = Rig()
    rig.publish("a", **queued(100.0, p0=1000))
    rig.publish("b", **{**queued(300.0, p0=2000, p3=5), "queue_size": 0})
    assert rig.snapshot.queue_time_estimate_ms_by_priority == {0: 250, 3: 250}
    rig.publish("b", last_mean_input_tps=100.0)
    assert rig.snapshot.queue_time_estimate_ms_by_priority == {0: 500}


def test_of_more_priorities_than_are_kept_the_most_urgent_count() -> None:
    rig = Rig()
    most = PRIORITIES.pieces or 0
    for server_id, parity in (("a", 0), ("b", 1)):
        rig.publish(server_id, **queued(100.0, **{f"p{2 * rank + parity}": rank for rank in range(most)}))
    shown = rig.snapshot.queue_time_estimate_ms_by_priority
    assert list(shown) == list(range(most))
    assert shown[most - 1] == most // 2 - 1


# Reservations


def test_reservation_counts_until_its_workers_next_report() -> None:
    rig = Rig()
    figures: dict[str, Any] = {"last_mean_input_tps": 100.0, "queue_time_estimate_ms_by_priority": {"4": 5}}
    published = rig.publish("w", **figures)
    reservation = rig.cluster.reserve(published, 37, 4)
    shown = rig.snapshot
    assert (shown.num_running_queries, shown.queue_size, shown.queued_input_size, shown.total_query_input_size) == (
        1,
        1,
        37,
        37,
    )
    assert shown.queue_time_estimate_ms_by_priority == {4: 375}
    rig.publish("w", **figures)
    assert rig.snapshot.queue_size == 0
    assert rig.snapshot.queue_time_estimate_ms_by_priority == {4: 5}
    assert reservation is not None
    assert not reservation.live
    rig.cluster.reserve(published, 1, 4)
    reservation.release()
    assert rig.snapshot.queue_size == 1


def test_released_reservation_is_out_at_once() -> None:
    rig = Rig()
    published = rig.publish("w", last_mean_input_tps=100.0, queue_time_estimate_ms_by_priority={"4": 5})
    first, second = (rig.cluster.reserve(published, tokens, 4) for tokens in (37, 10))
    assert first is not None
    assert second is not None
    assert rig.snapshot.queue_time_estimate_ms_by_priority == {4: 475}
    first.release()
    assert rig.snapshot.queue_time_estimate_ms_by_priority == {4: 105}
    assert (first.live, second.live) == (False, True)
    second.release()
    assert rig.snapshot.queue_time_estimate_ms_by_priority == {4: 5}
    assert rig.snapshot.queue_size == 0


def test_report_of_another_worker_keeps_a_reservation_at_the_summed_throughput() -> None:
    rig = Rig()
    figures: dict[str, Any] = {
        "last_mean_input_tps": 100.0,
        "queue_time_estimate_ms_by_priority": {"4": 5},
        "queue_size": 1,
    }
    published = rig.publish("a", **figures)
    rig.cluster.reserve(published, 37, 4)
    assert rig.snapshot.queue_time_estimate_ms_by_priority == {4: 375}
    rig.publish("b", **figures)
    assert rig.snapshot.queue_time_estimate_ms_by_priority == {4: 190}
    rig.withdraw("b")
    assert rig.snapshot.queue_time_estimate_ms_by_priority == {4: 375}
    assert rig.snapshot.queue_size == 2


def test_worker_that_leaves_takes_its_reservations_with_it() -> None:
    rig = Rig()
    a, b = rig.publish("a"), rig.publish("b")
    gone, kept = rig.cluster.reserve(a, 5, 0), rig.cluster.reserve(b, 7, 0)
    rig.withdraw("a")
    assert gone is not None
    assert not gone.live
    assert kept is not None
    assert kept.live
    assert rig.snapshot.queued_input_size == 7
    gone.release()
    assert rig.snapshot.queued_input_size == 7


def test_unknown_throughput_clears_the_estimates_only_while_such_work_is_pending() -> None:
    rig = Rig(EARLIER)
    rig.publish("a", last_mean_input_tps=5e-324, queue_time_estimate_ms_by_priority={"4": 5})
    published = rig.publish("b", queue_time_estimate_ms_by_priority={"4": 5})
    small, huge = rig.cluster.reserve(published, 0, 4), rig.cluster.reserve(published, MAX_U64, 4)
    assert small is not None
    assert huge is not None
    assert rig.snapshot.queue_time_estimate_ms_by_priority == {}
    huge.release()
    assert rig.snapshot.queue_time_estimate_ms_by_priority == {4: 5}


def test_reservations_of_one_priority_come_and_go_separately() -> None:
    rig = Rig()
    published = rig.publish("w", last_mean_input_tps=1000.0, queue_time_estimate_ms_by_priority={"4": 5})
    zero, one = rig.cluster.reserve(published, 0, 2), rig.cluster.reserve(published, 1, 2)
    assert zero is not None
    assert one is not None
    assert rig.snapshot.queue_time_estimate_ms_by_priority == {2: 1, 4: 6}
    one.release()
    assert rig.snapshot.queue_time_estimate_ms_by_priority == {2: 0, 4: 5}
    zero.release()
    assert rig.snapshot.queue_time_estimate_ms_by_priority == {4: 5}


def test_publication_of_another_registration_object_with_the_same_id_is_not_reserved_on() -> None:
    rig = Rig()
    old = rig.publish("w")
    rig.withdraw("w")
    rig.register("w")
    new = rig.publish("w")
    assert rig.cluster.reserve(old, 1, 0) is None
    assert rig.cluster.reserve(new, 1, 0) is not None


def test_late_withdrawal_by_another_registration_object_with_the_same_id_changes_nothing() -> None:
    rig = Rig()
    old = rig.register("w")
    rig.register("w")
    rig.publish("w")
    rig.target.withdraw(old)
    assert rig.target.active_count == 1


def test_chosen_publication_stays_as_it_was_when_a_report_replaces_it() -> None:
    rig = Rig()
    rig.publish("w", queue_size=1)
    chosen = rig.cluster.pick(())
    assert chosen is not None
    rig.publish("w", queue_size=2)
    later = rig.cluster.pick(())
    assert later is not None
    assert (chosen.stats.queue_size, later.stats.queue_size) == (1, 2)


def test_snapshot_in_hand_does_not_change() -> None:
    rig = Rig()
    published = rig.publish("w", queue_time_estimate_ms_by_priority={"1": 1}, last_mean_input_tps=1.0)
    before = rig.snapshot
    rig.cluster.reserve(published, 5, 0)
    rig.publish("v", queue_size=9)
    assert rig.snapshot is not before
    assert (before.queue_size, before.active_backend_count, dict(before.queue_time_estimate_ms_by_priority)) == (
        0,
        1,
        {1: 1},
    )


# Exact sums


def test_exact_sum_is_infinite_beyond_the_largest_float() -> None:
    total = ExactSum()
    largest = 1.7976931348623157e308
    total.add(largest)
    total.add(largest)
    assert total.value() == math.inf
    total.add(largest, -1)
    assert total.value() == largest
    for _ in range(3):
        total.add(largest, -1)
    assert total.value() == -math.inf
