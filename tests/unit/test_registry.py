"""The registry: memberships, targets, what is routable and what is advertised, generations."""

from collections.abc import Callable
from typing import Any

import pytest

from router.registry import (
    AlreadyRegisteredError,
    Backend,
    Identity,
    ModelStats,
    ModelUpdate,
    Registration,
    Registry,
    Target,
    TargetKey,
)
from router.registry.target import RetiredTargetError

M = TargetKey(None, "m")


def identity(server_id: str, cluster_id: str = "c", routing_key: str | None = None) -> Identity:
    return Identity(server_id, cluster_id, f"quic://10.0.0.1:{len(server_id)}", routing_key, reverse=False)


def active(**stats: Any) -> ModelUpdate:
    return ModelUpdate(True, ModelStats(**stats))


INACTIVE = ModelUpdate(False, ModelStats())


class World:
    """A registry with a clock of its own and everything it told about active counts."""

    def __init__(self, on_count: Callable[[TargetKey, int], None] = lambda *_: None) -> None:
        self.counts: dict[TargetKey, int] = {}
        self._on_count = on_count
        self.registry = Registry(self._told)
        self.now = 0.0

    def _told(self, key: TargetKey, count: int) -> None:
        self.counts[key] = count
        self._on_count(key, count)

    def begin(self, server_id: str, cluster_id: str = "c", routing_key: str | None = None) -> Registration:
        return self.registry.begin(identity(server_id, cluster_id, routing_key), None)  # type: ignore[arg-type]

    def apply(self, registration: Registration, rtt_ns: int | None = 1_000_000, **models: ModelUpdate) -> None:
        self.now += 1
        self.registry.apply(registration, models, connected=True, rtt_ns=rtt_ns, now=self.now)

    def published(self, server_id: str, cluster_id: str = "c", routing_key: str | None = None) -> Registration:
        registration = self.begin(server_id, cluster_id, routing_key)
        self.apply(registration, m=active())
        return registration

    def target(self, key: TargetKey = M) -> Target:
        target = self.registry.target(key)
        assert target is not None
        return target

    def routable(self, key: TargetKey = M) -> list[str]:
        target = self.registry.target(key)
        if target is None:
            return []
        return [each.inference_server_id for shown in target.candidates() for each in shown.cluster.backends()]


def backend(registration: Registration, received_at: float = 0.0, **stats: Any) -> Backend:
    return Backend(registration, ModelStats(**stats), 1_000_000, received_at)


# Memberships and generations


def test_live_id_is_refused_with_its_holder() -> None:
    world = World()
    first = world.begin("w", "c", "key")
    with pytest.raises(AlreadyRegisteredError, match="inference_server_id 'w' is already registered") as refused:
        world.begin("w", "other", None)
    assert refused.value.existing is first
    world.registry.end(first)
    assert world.begin("w").identity.cluster_id == "c"


def test_live_and_registrations_show_who_is_there() -> None:
    world = World()
    first, second = world.begin("b"), world.begin("a")
    assert world.registry.live("b") is first
    assert world.registry.registrations() == [first, second]
    world.registry.end(first)
    assert world.registry.live("b") is None
    assert world.registry.registrations() == [second]


def test_cluster_generation_is_shared_until_its_last_registration_ends() -> None:
    world = World()
    a, b = world.begin("a"), world.begin("b")
    generation = a.generation
    assert b.generation is generation
    world.registry.end(a)
    c = world.begin("c")
    assert c.generation is generation
    world.registry.end(b)
    assert not generation.retired
    world.registry.end(c)
    assert generation.retired
    assert world.begin("a").generation is not generation


def test_cluster_of_another_routing_key_is_another_cluster() -> None:
    world = World()
    assert world.begin("a", "c", "x").generation is not world.begin("b", "c", None).generation


def test_cluster_may_be_named_like_another_server() -> None:
    world = World()
    world.published("a", "a")
    world.published("b", "a")
    assert [(c.cluster_id, c.active_backend_count) for c in world.target().candidates()] == [("a", 2)]


def test_late_cleanup_of_an_ended_registration_leaves_its_replacement_alone() -> None:
    for sibling in (False, True):
        world = World()
        if sibling:
            world.published("sibling")
        old = world.published("w")
        world.registry.end(old)
        new = world.published("w")
        world.registry.end(old)
        world.registry.withdraw(old)
        world.apply(old, m=INACTIVE)
        assert "w" in world.routable()
        assert world.registry.live("w") is new


def test_stale_selection_can_not_reserve_on_a_replacement() -> None:
    for sibling in (False, True):
        world = World()
        if sibling:
            world.published("sibling")
        old = world.published("w")
        cluster = world.target().candidates()[0].cluster
        stale = next(each for each in cluster.backends() if each.registration is old)
        world.registry.end(old)
        new = world.published("w")
        current = world.target().candidates()[0].cluster
        assert cluster.reserve(stale, 10, 0) is None
        assert current.reserve(stale, 10, 0) is None
        assert world.target().candidates()[0].queue_size == 0
        fresh = next(each for each in current.backends() if each.registration is new)
        assert current.reserve(fresh, 10, 0) is not None
        assert world.target().candidates()[0].queue_size == 1


def test_selected_cluster_yields_nothing_once_its_workers_left_even_if_its_name_is_back() -> None:
    world = World()
    old = world.published("w")
    cluster = world.target().candidates()[0].cluster
    world.registry.end(old)
    world.published("w")
    assert cluster.pick(()) is None


def test_leftovers_of_a_retired_generation_vanish_when_its_successor_publishes_or_withdraws() -> None:
    for publishes in (True, False):
        world = World()
        old = world.begin("w")
        target = Target(M)
        target.publish(backend(old))
        held = target.candidates()[0].cluster
        reserved = held.reserve(held.backends()[0], 5, 0)
        assert reserved is not None
        world.registry.end(old)
        new = world.begin("w")
        if publishes:
            target.publish(backend(new))
        else:
            target.withdraw(new)
        assert target.active_count == (1 if publishes else 0)
        assert len(target.candidates()) == (1 if publishes else 0)
        assert held.pick(()) is None
        assert not reserved.live


def test_stale_caller_does_not_touch_a_live_generation() -> None:
    world = World()
    old = world.begin("w")
    world.registry.end(old)
    new = world.begin("w")
    target = Target(M)
    target.publish(backend(new))
    target.withdraw(old)
    assert target.active_count == 1


# What is routable


@pytest.mark.parametrize(
    ("update", "connected", "rtt_ns", "routable"),
    [
        (active(), True, 5, True),
        (active(), True, 0, True),
        (active(), True, None, False),
        (active(), False, 5, False),
        (ModelUpdate(True, None), True, 5, False),
        (INACTIVE, True, 5, False),
    ],
)
def test_routable_is_active_with_stats_connected_and_measured(
    update: ModelUpdate, connected: bool, rtt_ns: int | None, routable: bool
) -> None:
    world = World()
    for before in (False, True):
        registration = world.published("w") if before else world.begin("w")
        world.registry.apply(registration, {"m": update}, connected=connected, rtt_ns=rtt_ns, now=5.0)
        assert world.routable() == (["w"] if routable else [])
        assert world.registry.is_advertised(M)
        world.registry.end(registration)


def test_published_worker_is_read_with_its_exact_round_trip_and_registration() -> None:
    world = World()
    registration = world.begin("w")
    world.apply(registration, rtt_ns=123_456_789, m=active())
    [candidate] = world.target().candidates()
    chosen = candidate.cluster.pick(())
    assert chosen is not None
    assert (candidate.rtt_ns, chosen.registration, chosen.rtt_ns) == (123_456_789, registration, 123_456_789)
    assert (chosen.inference_server_url, chosen.cluster_id, chosen.received_at) == ("quic://10.0.0.1:1", "c", 1.0)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_report_that_says_the_same_again_gives_what_an_equal_one_gives(workers: int) -> None:
    def report() -> ModelUpdate:
        return active(
            last_mean_input_tps=100.0,
            output_tps=3.5,
            max_output_tps=7.0,
            queue_size=2,
            num_running_queries=1,
            queue_time_estimate_ms_by_priority={0: 5},
        )

    shown = []
    for same in (True, False):
        world = World()
        registrations = [world.begin(f"w{number}") for number in range(workers)]
        first = report()
        for registration in registrations:
            world.apply(registration, m=first)
        [candidate] = world.target().candidates()
        chosen = candidate.cluster.pick(())
        assert chosen is not None
        candidate.cluster.reserve(chosen, 10, 0)
        world.apply(registrations[0], rtt_ns=5_000_000, m=first if same else report())
        [candidate] = world.target().candidates()
        assert candidate.queue_size == 2 * workers  # the reservation has ended
        assert candidate.received_at == world.now
        names = [name for name in dir(candidate) if not name.startswith("_") and name != "cluster"]
        values = {name: getattr(candidate, name) for name in names}
        shown.append({name: value for name, value in values.items() if not callable(value)})
    assert shown[0] == shown[1]


def test_a_target_picks_by_cluster_id_and_passes_over_what_is_excluded_or_gone() -> None:
    world = World()
    world.published("w1", "c")
    target = world.target()
    picked = target.pick("c", ())
    assert picked is not None
    cluster, backend = picked
    assert (cluster, backend.inference_server_id) == (target.candidates()[0].cluster, "w1")
    assert target.pick("c", {"w1"}) is None
    assert target.pick("left", ()) is None


def test_dropped_model_loses_routes_and_its_target() -> None:
    world = World()
    registration = world.begin("w")
    world.apply(registration, a=active())
    target = world.target(TargetKey(None, "a"))
    world.apply(registration, b=active())
    assert target.retired
    assert target.candidates() == []
    assert world.registry.target(TargetKey(None, "a")) is None
    assert not world.registry.is_advertised(TargetKey(None, "a"))
    assert world.routable(TargetKey(None, "b")) == ["w"]


def test_withdrawn_worker_is_out_of_routing_but_advertised_until_it_ends() -> None:
    world = World()
    registration = world.published("w")
    world.registry.withdraw(registration)
    assert world.registry.target(M) is None
    assert world.registry.is_advertised(M)
    assert not world.registry.is_advertised(TargetKey("key", "m"))
    world.apply(registration, m=active())
    assert world.routable() == ["w"]
    world.registry.end(registration)
    assert not world.registry.is_advertised(M)


def test_model_is_advertised_until_its_last_advertiser_leaves_or_drops_it() -> None:
    world = World()
    a, b = world.begin("a"), world.begin("b", "d")
    world.apply(a, m=INACTIVE)
    world.apply(b, m=INACTIVE)
    world.registry.end(a)
    assert world.registry.is_advertised(M)
    world.apply(b)
    assert not world.registry.is_advertised(M)


def test_update_in_progress_advertises_the_new_models_and_covers_the_old_ones() -> None:
    seen: list[tuple[bool, bool, set[str]]] = []

    def look(key: TargetKey, count: int) -> None:
        if key.model == "old" and count == 0:
            registry = world.registry
            new = registry.is_advertised(TargetKey(None, "new"))
            old = registry.is_advertised(TargetKey(None, "old"))
            seen.append((new, old, set(registration.models)))

    world = World(look)
    registration = world.begin("w")
    world.apply(registration, old=active())
    world.apply(registration, new=active())
    assert seen == [(True, False, {"old", "new"})]
    assert registration.models == {"new"}


def test_overlapping_updates_of_one_registration_are_a_defect_of_the_caller() -> None:
    def overlap(key: TargetKey, count: int) -> None:
        with pytest.raises(RuntimeError):
            world.registry.apply(registration, {}, connected=True, rtt_ns=1, now=1.0)

    world = World(overlap)
    registration = world.begin("w")
    world.apply(registration, m=active())
    assert world.routable() == ["w"]


def test_registration_that_ends_during_an_update_leaves_no_route_behind() -> None:
    def end(key: TargetKey, count: int) -> None:
        if key.model == "a" and count == 1:
            world.registry.end(registration)

    world = World(end)
    registration = world.begin("w")
    world.apply(registration, old=active())
    world.apply(registration, old=active(), a=active(), z=active())
    assert world.registry.all_active_models() == []
    assert world.registry.registrations() == []
    assert not world.registry.is_advertised(TargetKey(None, "z"))


def test_update_after_the_end_changes_nothing() -> None:
    world = World()
    registration = world.begin("w")
    world.registry.end(registration)
    world.apply(registration, m=active())
    assert world.routable() == []
    assert not world.registry.is_advertised(M)


# Counting and listing


def test_active_count_follows_workers_not_heartbeats() -> None:
    world = World()
    a, b = world.published("a"), world.published("b")
    world.apply(a, m=active())
    assert world.target().active_count == world.counts[M] == 2
    target = world.target()
    world.registry.withdraw(a)
    world.registry.withdraw(a)
    assert target.active_count == world.counts[M] == 1
    world.registry.end(b)
    assert target.active_count == world.counts[M] == 0


def test_model_that_never_was_routable_is_never_counted() -> None:
    world = World()
    registration = world.begin("w")
    world.apply(registration, m=INACTIVE)
    world.registry.end(registration)
    assert world.counts == {}


def test_registry_works_without_a_listener_for_counts() -> None:
    registry = Registry()
    registration = registry.begin(identity("w"), None)  # type: ignore[arg-type]
    registry.apply(registration, {"m": active()}, connected=True, rtt_ns=1, now=0.0)
    assert registry.active_models(None) == ["m"]


def test_listing_shows_only_routable_models_of_exactly_the_routing_key() -> None:
    world = World()
    world.apply(world.begin("a", "a", "k"), zeta=active(), alpha=active(), off=INACTIVE)
    world.apply(world.begin("b", "b", "l"), beta=active())
    world.apply(world.begin("c", "c"), rtt_ns=None, gamma=active())
    registry = world.registry
    assert registry.active_models("k") == ["alpha", "zeta"]
    assert registry.active_models("k", ["zeta", "zeta", "beta", "none"]) == ["zeta"]
    assert registry.active_models("l") == ["beta"]
    assert registry.active_models(None) == []
    assert registry.active_models("?", ["alpha"]) == []
    assert registry.all_active_models() == ["alpha", "beta", "zeta"]
    assert sorted(target.key for target in registry.targets()) == [("k", "alpha"), ("k", "zeta"), ("l", "beta")]


def test_one_model_under_two_keys_keeps_its_candidates_apart() -> None:
    world = World()
    world.published("a", "c", "k")
    second = world.published("b", "c", "l")
    assert world.routable(TargetKey("k", "m")) == ["a"]
    assert world.routable(TargetKey("l", "m")) == ["b"]
    world.registry.end(second)
    assert world.registry.all_active_models() == ["m"]
    assert world.registry.active_models("l") == []


def test_listing_is_in_byte_order() -> None:
    world = World()
    names = ["b", "B", "ä", "\U0001f600", "\uffff", "a"]
    world.apply(world.begin("w"), **{name: active() for name in names})
    assert world.registry.active_models(None) == sorted(names, key=str.encode)


# Targets


def test_retired_target_accepts_no_publication_and_a_new_one_takes_it() -> None:
    world = World()
    first = world.published("w")
    retired = world.target()
    world.registry.end(first)
    second = world.begin("w")
    with pytest.raises(RetiredTargetError):
        retired.publish(backend(second))
    world.apply(second, m=active())
    assert world.target() is not retired
    assert retired.candidates() == []


def test_recreated_target_starts_without_the_balancers_memory() -> None:
    world = World()
    registration = world.published("w")
    world.target().balancer_state["counter"] = 7
    world.registry.withdraw(registration)
    world.apply(registration, m=active())
    assert world.target().balancer_state == {}


def test_new_target_without_clusters_shows_nothing() -> None:
    target = Target(M)
    assert (target.candidates(), target.active_count) == ([], 0)
    world = World()
    target.withdraw(world.begin("w"))
    assert target.version == 0


def test_candidates_are_sorted_and_only_changed_clusters_get_new_snapshots() -> None:
    world = World()
    registrations = {name: world.published(name, name) for name in ("b", "a", "c")}
    target = world.target()
    before = list(target.candidates())
    assert [candidate.cluster_id for candidate in before] == ["a", "b", "c"]
    assert list(target.candidates()) == before
    version = target.version
    world.apply(registrations["b"], m=active(queue_size=3))
    assert target.version > version
    after = list(target.candidates())
    assert [new is old for new, old in zip(after, before, strict=True)] == [True, False, True]
    assert (before[1].queue_size, after[1].queue_size) == (0, 3)


def test_cluster_that_changes_and_leaves_before_anybody_looks_is_forgotten() -> None:
    world = World()
    a, b = world.published("a", "a"), world.published("b", "b")
    target = world.target()
    target.candidates()
    world.apply(a, m=active(queue_size=1))
    world.apply(a, m=active(queue_size=2))
    world.registry.end(a)
    world.apply(b, m=active(queue_size=4))
    assert [(c.cluster_id, c.queue_size) for c in target.candidates()] == [("b", 4)]


def test_version_changes_with_every_visible_change() -> None:
    world = World()
    a = world.published("a", "a")
    target = world.target()
    versions = [target.version]

    def changed() -> bool:
        versions.append(target.version)
        return versions[-1] > versions[-2]

    assert not changed()
    b = world.published("b", "b")
    assert changed()
    world.apply(b, m=active())
    assert changed()
    cluster = target.candidates()[0].cluster
    chosen = cluster.pick(())
    assert chosen is not None
    assert not changed()
    reservation = cluster.reserve(chosen, 1, 0)
    assert reservation is not None
    assert changed()
    reservation.release()
    assert changed()
    reservation.release()
    assert not changed()
    world.registry.withdraw(b)
    assert changed()
    world.registry.end(a)
    assert changed()
