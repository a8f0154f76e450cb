"""A request does not queue at an engine with a free slot, if the worker reports how many it has."""

import random
from typing import Any

import pytest

from router.balancing import BalancingConfig, Chosen, RoutingRequest, Selector
from router.balancing.admission import input_work_seconds
from router.balancing.estimates import comparators, queue_delay_ms
from router.registry import Identity, ModelStats, ModelUpdate, Registry, Target, TargetKey
from router.registry.settings import CURRENT, RegistrySettings

EARLIER = RegistrySettings(adds_up_load=False, free_slots=False)
BUSY: dict[str, Any] = {
    "last_mean_input_tps": 8000.0,
    "queue_size": 3,
    "queued_input_size": 80_000,
    "num_running_queries": 24,
}


def target(settings: RegistrySettings = CURRENT, **stats: Any) -> Target:
    registry = Registry(settings=settings)
    registration = registry.begin(Identity("w", "w", "quic://192.0.2.1:1", None, reverse=True), None)  # type: ignore[arg-type]
    figures = {"m": ModelUpdate(True, ModelStats(**{**BUSY, **stats}))}
    registry.apply(registration, figures, connected=True, rtt_ns=1_000_000, now=0.0)
    found = registry.target(TargetKey(None, "m"))
    assert found is not None
    return found


def reserve(place: Target, tokens: int) -> None:
    picked = place.pick("w", ())
    assert picked is not None
    cluster, backend = picked
    cluster.reserve(backend, tokens, 0)


@pytest.mark.parametrize(
    ("settings", "limit", "delay"),
    [(CURRENT, 25, 0.0), (CURRENT, 24, 10_000.0), (CURRENT, 0, 10_000.0), (EARLIER, 25, 10_000.0)],
)
def test_a_free_slot_means_no_queue_if_the_limit_is_known(settings: RegistrySettings, limit: int, delay: float) -> None:
    (candidate,) = target(settings, max_engine_concurrency=limit).candidates()
    assert queue_delay_ms(candidate, 0) == delay
    assert comparators()["queue-time"](candidate, 800, 0) == delay
    assert comparators()["ttft"](candidate, 800, 0) == 1.0 + delay + 100.0


def test_a_request_on_its_way_takes_the_last_free_slot() -> None:
    place = target(max_engine_concurrency=25)
    reserve(place, 8000)
    (candidate,) = place.candidates()
    assert queue_delay_ms(candidate, 0) == 11_000.0


def test_the_worker_is_told_to_expect_no_queue_at_a_free_slot() -> None:
    place = target(max_engine_concurrency=25)
    told = []
    for _ in range(2):
        selector = Selector(BalancingConfig(), random.Random(0))
        request = RoutingRequest(routing_key=None, model="m", input_tokens=0, received_at=0.0)
        chosen: Any = selector.select(
            selector.resolve("m", None),
            request,
            place,
            advertised=bool,
            failed_backends=set(),
            failed_clusters=set(),
            now=0.0,
        )
        assert isinstance(chosen, Chosen)
        told.append(chosen.expected_queue_ms)
        reserve(place, 8000)
    assert told == [0, 11_000]


def test_counters_work_and_admission_do_not_follow_free_slots() -> None:
    (candidate,) = target(max_engine_concurrency=25).candidates()
    assert candidate.queue_size == comparators()["num-requests-queued"](candidate, 0, 0) == 3
    assert comparators()["input-work-seconds"](candidate, 8000, 0) == 11.0
    assert input_work_seconds([candidate], 8000) == 11.0
