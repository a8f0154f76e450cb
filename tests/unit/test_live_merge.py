"""Several processes of a router, shown as one."""

from typing import Any

import msgspec

from router.operators.live_document import (
    Cluster,
    Flow,
    Live,
    Process,
    Request,
    Router,
    Second,
    Target,
    Worker,
)
from router.supervisor.live_merge import merged, router_of
from support.live_documents import a_router, filled, live


def merge(*lives: Live, rows: int = 100, last: int = 50) -> Live:
    router = router_of([each.state for each in lives], "r", 10.0, 4.0, [])
    return merged(lives, router, (rows, last))


def worker(state: str, **given: Any) -> Worker:
    healthy = int(state == "healthy")
    return filled(Worker, **{"inference_server_id": "w", "state": state, "healthy_in": healthy, **given})  # type: ignore[no-any-return]


def test_a_worker_has_the_latest_report_the_worse_state_and_the_requests_of_all() -> None:
    old = worker(
        "silent",
        report_age_s=9.0,
        running=1,
        in_flight=2,
        attempts=3,
        refusals=1,
        failures=1,
        free_streams=5,
        silent_s=2.0,
    )
    new = worker(
        "healthy", report_age_s=0.1, running=7, in_flight=1, attempts=4, refusals=0, failures=2, free_streams=6
    )
    never = worker("inactive", report_age_s=None, running=0)
    for order in ((old, new, never), (never, new, old)):
        (found,) = merge(*(live(workers=[msgspec.structs.replace(each)]) for each in order)).state.workers
        assert (found.state, found.silent_s, found.running) == ("silent", 2.0, 7)
        assert (found.in_flight, found.attempts, found.refusals, found.failures, found.free_streams) == (3, 7, 1, 3, 11)
        assert (found.healthy_in, found.registered_in) == (1, 3)


def test_targets_and_flows_are_added_up_and_clusters_are_not() -> None:
    one = live(
        targets=[filled(Target, model="m", workers=2, registered=2, requests=5, errors=1, refused=1, in_flight=1)],
        clusters=[filled(Cluster, cluster_id="c", workers=2, routable=1, running=3)],
        flows=[filled(Flow, model="m", inference_server_id="w", in_flight=1, per_second=0.5)],
        left_out=1,
    )
    two = live(
        targets=[filled(Target, model="m", workers=1, registered=2, requests=6), filled(Target, model="a")],
        clusters=[filled(Cluster, cluster_id="c", workers=2, routable=2, running=4)],
        flows=[filled(Flow, model="m", inference_server_id="w", per_second=1.25), filled(Flow, model="m", in_flight=4)],
    )
    state = merge(one, two).state
    assert [target.model for target in state.targets] == ["a", "m"]
    target = state.targets[1]
    assert (target.workers, target.registered, target.requests, target.errors, target.refused) == (2, 2, 11, 1, 1)
    (cluster,) = state.clusters
    assert (cluster.routable, cluster.running) == (2, 4)
    assert [(flow.inference_server_id, flow.in_flight, flow.per_second) for flow in state.flows] == [
        ("", 4, 0),
        ("w", 1, 1.75),
    ]
    assert state.left_out == 1


def test_rows_beyond_the_limit_are_counted() -> None:
    lives = [
        live(workers=[worker("healthy", inference_server_id=f"{process}{n}") for n in range(3)]) for process in "ab"
    ]
    state = merge(*lives, rows=4).state
    assert (len(state.workers), state.left_out) == (4, 2)


def test_the_history_is_exact_over_processes() -> None:
    one = live(
        history=[Second(at=1, requests=2, errors=1, total_counts={10: 2}, first_token_counts={5: 1}), Second(at=2)]
    )
    two = live(
        history=[Second(at=2, requests=1, total_counts={20: 1}), Second(at=3, requests=98, total_counts={10: 98})]
    )
    three = live(
        history=[Second(at=1, requests=1, total_counts={20: 1}), Second(at=3, requests=2, total_counts={30: 2})]
    )
    first, second, third = merge(one, two, three).history
    assert (first.at, first.requests, first.errors) == (1, 3, 1)
    assert (second.requests, third.requests) == (1, 100)
    assert second.first_token_ms is None
    assert third.total_ms is not None
    assert third.total_ms.p50 < third.total_ms.p99
    assert first.total_counts is None


def test_the_last_requests_are_those_of_all() -> None:
    lives = [
        live(requests=[filled(Request, process=process, number=n, at=at) for n, at in ((2, at), (1, at - 5))])
        for process, at in (("a", 10.0), ("b", 12.0))
    ]
    found = merge(*lives, last=3).requests
    assert [(one.process, one.number) for one in found] == [("b", 2), ("a", 2), ("b", 1)]


def test_a_router_is_ready_if_any_process_is_and_drains_if_all_do() -> None:
    def told(*routers: Router) -> Router:
        states = [live(router=router).state for router in routers]
        return router_of(states, "r", 10.0, 4.0, [Process(stargate_id="r-0", serving=True)])

    warm = a_router(in_flight=2, waiting=1, version="1", commit="c")
    cold = a_router(ready=False, not_ready=["warming_up"], draining=True, in_flight=1)
    both = told(warm, cold)
    assert (both.ready, both.not_ready, both.draining) == (True, [], False)
    assert (both.in_flight, both.waiting, both.uptime_s, both.version) == (3, 1, 6.0, "1")
    assert (told(cold).ready, told(cold).not_ready, told(cold).draining) == (False, ["warming_up"], True)
    assert (told().ready, told().not_ready, told().draining) == (False, ["no process serves"], False)
