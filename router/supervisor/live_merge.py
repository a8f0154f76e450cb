"""The states of several processes as the state of one router. Pure.

A worker is registered with every process and reports the same engine to each, so its engine's figures are those of the
latest report, and its requests are added up. Of two states of a worker the worse one is told, with the number of processes
in which it is healthy.
"""

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import TypeVar

from router.operators.durations import quantiles
from router.operators.live_document import (
    SECONDS,
    Cluster,
    Flow,
    Live,
    Process,
    Request,
    Router,
    Second,
    State,
    Target,
    Worker,
)

T = TypeVar("T")

_WORSE = ("healthy", "inactive", "silent", "disconnected")


def merged(lives: Sequence[Live], router: Router, limits: tuple[int, int]) -> Live:
    """`lives` of at least one process as one; `router` has what is true of all together. `limits`: rows, last requests."""
    rows, last = limits
    states = [live.state for live in lives]
    workers = _by(lambda one: one.inference_server_id, (one for state in states for one in state.workers), _add_worker)
    targets = _by(
        lambda one: (one.routing_key, one.model), (one for state in states for one in state.targets), _add_target
    )
    clusters = _by(
        lambda one: (one.routing_key, one.cluster_id), (one for state in states for one in state.clusters), _add_cluster
    )
    flows = _by(
        lambda one: (one.routing_key, one.model, one.inference_server_id),
        (one for state in states for one in state.flows),
        _add_flow,
    )
    flows.sort(key=lambda one: (-one.in_flight, -one.per_second))
    requests: list[Request] = sorted((one for live in lives for one in live.requests), key=lambda one: -one.at)
    tables: tuple[list[Worker], list[Target], list[Cluster], list[Flow]] = (workers, targets, clusters, flows)
    return Live(
        state=State(
            router=router,
            policy=states[0].policy,
            certificates=states[0].certificates,
            targets=sorted(targets[:rows], key=lambda one: (one.model, one.routing_key or "")),
            clusters=sorted(clusters[:rows], key=lambda one: (one.cluster_id, one.routing_key or "")),
            workers=sorted(workers[:rows], key=lambda one: one.inference_server_id),
            flows=flows[:rows],
            left_out=sum(state.left_out for state in states) + sum(max(len(table) - rows, 0) for table in tables),
        ),
        history=_history([live.history for live in lives]),
        requests=requests[:last],
    )


def router_of(
    states: Sequence[State], stargate_id: str, now: float, started_at: float, processes: list[Process]
) -> Router:
    """What is true of all processes together."""
    routers = [state.router for state in states]
    ready = any(one.ready for one in routers)
    reasons = [] if ready else sorted({reason for one in routers for reason in one.not_ready}) or ["no process serves"]
    return Router(
        stargate_id=stargate_id,
        version=routers[0].version if routers else "",
        commit=routers[0].commit if routers else "",
        now=now,
        started_at=started_at,
        uptime_s=round(now - started_at, 3),
        ready=ready,
        not_ready=reasons,
        draining=bool(routers) and all(one.draining for one in routers),
        in_flight=sum(one.in_flight for one in routers),
        waiting=sum(one.waiting for one in routers),
        processes=processes,
    )


def _by(key: Callable[[T], Hashable], items: Iterable[T], add: Callable[[T, T], T]) -> list[T]:
    """Items with the same key as one, in the order of first occurrence."""
    found: dict[Hashable, T] = {}
    for item in items:
        name = key(item)
        found[name] = add(found[name], item) if name in found else item
    return list(found.values())


def _age(worker: Worker) -> float:
    return float("inf") if worker.report_age_s is None else worker.report_age_s


def _add_worker(one: Worker, other: Worker) -> Worker:
    """The latest report, the worse state, and the requests of both."""
    latest, older = (other, one) if _age(other) < _age(one) else (one, other)
    worse = max(one, other, key=lambda each: _WORSE.index(each.state) if each.state in _WORSE else 0)
    latest.state, latest.silent_s = worse.state, worse.silent_s
    latest.free_streams += older.free_streams
    latest.in_flight += older.in_flight
    latest.attempts += older.attempts
    latest.refusals += older.refusals
    latest.failures += older.failures
    latest.healthy_in += older.healthy_in
    latest.registered_in += older.registered_in
    return latest


def _add_target(one: Target, other: Target) -> Target:
    one.workers = max(one.workers, other.workers)
    one.registered = max(one.registered, other.registered)
    one.clusters = max(one.clusters, other.clusters)
    one.in_flight += other.in_flight
    one.requests += other.requests
    one.errors += other.errors
    one.refused += other.refused
    return one


def _add_cluster(one: Cluster, other: Cluster) -> Cluster:
    """Both have it from the same workers: the one that knows more of them."""
    return max(one, other, key=lambda each: (each.routable, each.workers))


def _add_flow(one: Flow, other: Flow) -> Flow:
    one.in_flight += other.in_flight
    one.per_second = round(one.per_second + other.per_second, 2)
    return one


def _history(histories: Sequence[Sequence[Second]]) -> list[Second]:
    """Second by second; those that one process has and another has not (yet) count as they are."""
    found: dict[int, Second] = {}
    for history in histories:
        for second in history:
            total = found.setdefault(second.at, Second(at=second.at, first_token_counts={}, total_counts={}))
            total.requests += second.requests
            total.errors += second.errors
            _add_counts(total.first_token_counts, second.first_token_counts)
            _add_counts(total.total_counts, second.total_counts)
    return [
        Second(
            at=total.at,
            requests=total.requests,
            errors=total.errors,
            first_token_ms=quantiles(total.first_token_counts or {}),
            total_ms=quantiles(total.total_counts or {}),
        )
        for _, total in sorted(found.items())
    ][-SECONDS:]


def _add_counts(total: dict[int, int] | None, more: dict[int, int] | None) -> None:
    if total is not None and more is not None:
        for step, count in more.items():
            total[step] = total.get(step, 0) + count
