"""The state that the operators' pages show, from the registry and the metrics of a process."""

from typing import Any

import pytest

from router.operators.live_document import ROWS, Policy, State
from router.operators.request_log import RequestLog
from router.operators.state_collector import RouterFacts, StateCollector
from router.registry import Identity, ModelStats, ModelUpdate, Registration, Registry
from router.telemetry.metrics import Metrics


class Tunnels:
    """What a registration has of its worker."""

    direct = False

    def __init__(self) -> None:
        self.up = True
        self.silent: float | None = None

    def healthy(self) -> bool:
        return self.up

    def free_streams(self) -> int:
        return 7

    def silent_since(self) -> float | None:
        return self.silent


class World:
    def __init__(self) -> None:
        self.now = 50.0
        self.registry = Registry()
        self.metrics = Metrics()
        self.in_flight: list[tuple[str | None, str, str]] = []
        self.not_ready: list[str] = []
        self.collector = StateCollector(
            self.registry,
            self.metrics,
            RequestLog("r-0", self.clock, self.clock),
            RouterFacts(
                stargate_id="r-0",
                version="1",
                commit="abc",
                started_at=40.0,
                not_ready=lambda: self.not_ready,
                draining=lambda: False,
                policy=lambda: Policy(digest="d", default_algorithm="a", loaded_at=1.0, reloads=0),
                certificates=list,
                in_flight=lambda: self.in_flight,
            ),
            loop_clock=self.clock,
            clock=self.clock,
            unix_clock=self.clock,
        )

    def clock(self) -> float:
        return self.now

    def worker(self, server_id: str, *models: str, cluster_id: str = "c", key: str | None = None, **stats: Any) -> Any:
        registration = self.registry.begin(
            Identity(server_id, cluster_id, "http://e", key, reverse=True),
            Tunnels(),  # type: ignore[arg-type]
        )
        self.report(registration, *models, **stats)
        return registration

    def report(self, registration: Registration, *models: str, active: bool = True, **stats: Any) -> None:
        updates = {model: ModelUpdate(active, ModelStats(**stats)) for model in models}
        self.registry.apply(registration, updates, connected=True, rtt_ns=2_000_000, now=self.now)

    def answered(self, model: str, server_id: str, status: str, count: int = 1, key: str = "") -> None:
        self.metrics.requests_total.inc((key, model, server_id, status), count)

    def state(self) -> State:
        return self.collector.state()


@pytest.fixture
def world() -> World:
    return World()


def test_a_worker_is_shown_with_what_it_reports_over_its_models(world: World) -> None:
    world.worker(
        *("w", "m", "n"),
        queue_size=2,
        num_running_queries=3,
        max_engine_concurrency=8,
        output_tps=10.5,
        last_mean_input_tps=20.0,
        kv_cache_used_tokens=5,
        kv_cache_capacity_tokens=50,
    )
    world.now += 3
    (worker,) = world.state().workers
    assert (worker.state, worker.rtt_ms, worker.report_age_s, worker.free_streams) == ("healthy", 2.0, 3.0, 7)
    assert (worker.queue, worker.running, worker.max_running) == (4, 6, 16)
    assert (worker.output_tps, worker.input_tps) == (21.0, 40.0)
    assert (worker.kv_used_tokens, worker.kv_capacity_tokens) == (10, 100)
    assert (worker.models, worker.models_total, worker.silent_s) == (["m", "n"], 2, None)


@pytest.mark.parametrize("rate", [float("inf"), float("nan"), float("-inf")])
def test_rates_that_json_does_not_have_are_shown_as_none(world: World, rate: float) -> None:
    world.worker("w", "m", output_tps=rate, last_mean_input_tps=rate)
    (worker,) = world.state().workers
    assert (worker.output_tps, worker.input_tps) == (0.0, 0.0)


def test_a_worker_without_an_active_model_is_inactive_and_its_target_stays_listed(world: World) -> None:
    registration = world.worker("w", "m")
    world.report(registration, "m", active=False)
    state = world.state()
    assert [one.state for one in state.workers] == ["inactive"]
    assert (state.workers[0].rtt_ms, state.workers[0].report_age_s) == (None, None)
    (target,) = state.targets
    assert (target.model, target.workers, target.registered, target.clusters) == ("m", 0, 1, 0)


def test_a_silent_worker_is_told_from_one_without_a_tunnel(world: World) -> None:
    silent, gone = world.worker("a", "m"), world.worker("b", "m")
    silent.tunnels.silent = 45.0
    gone.tunnels.up = False
    first, second = world.state().workers
    assert (first.state, first.silent_s) == ("silent", 5.0)
    assert (second.state, second.silent_s, second.free_streams) == ("disconnected", None, 0)


def test_clusters_add_up_their_workers_within_a_routing_key(world: World) -> None:
    world.worker("a", "m", queue_size=1, output_tps=1.25)
    inactive = world.worker("b", "m", queue_size=2, output_tps=1.0)
    world.worker("c", "m", queue_size=4, output_tps=1.0)
    world.worker("d", "m", key="k")
    world.report(inactive, "m", active=False)
    first, keyed = world.state().clusters
    assert (first.routing_key, first.workers, first.routable, first.queue, first.output_tps) == (None, 3, 2, 5, 2.2)
    assert first.rtt_ms == 2.0
    assert (keyed.routing_key, keyed.workers) == ("k", 1)


def test_targets_count_their_requests_errors_and_refusals(world: World) -> None:
    world.worker("w", "m")
    for server_id, status in (
        ("w", "200"),
        ("w", "404"),
        ("w", "500"),
        ("w", "503"),
        ("", "503"),
        ("", "429"),
        ("", "404"),
    ):
        world.answered("m", server_id, status)
    (target,) = world.state().targets
    assert (target.requests, target.errors, target.refused) == (7, 3, 2)


def test_workers_count_their_attempts_refusals_and_failures(world: World) -> None:
    world.worker("w", "m")
    for result in ("upstream_200", "upstream_429", "upstream_503", "upstream_500", "proxy_502"):
        world.metrics.proxy_attempts_total.inc(("", "m", "w", result))
    (worker,) = world.state().workers
    assert (worker.attempts, worker.refusals, worker.failures) == (5, 2, 2)


def test_flows_are_what_is_in_flight_and_what_was_answered_since_the_last_look(world: World) -> None:
    world.worker("w", "m")
    world.answered("m", "w", "200", 10)
    assert world.state().flows == []
    world.now += 2
    world.answered("m", "w", "200", 4)
    world.answered("m", "w", "500", 2)
    world.in_flight = [(None, "m", "w"), (None, "m", ""), (None, "m", "")]
    state = world.state()
    assert [(one.inference_server_id, one.in_flight, one.per_second) for one in state.flows] == [
        ("", 2, 0.0),
        ("w", 1, 3.0),
    ]
    assert (state.router.in_flight, state.router.waiting) == (3, 2)
    assert (state.targets[0].in_flight, state.workers[0].in_flight) == (3, 1)


def test_a_rate_over_a_long_time_is_not_told(world: World) -> None:
    world.state()
    world.answered("m", "w", "200")
    world.now += 60
    assert world.state().flows == []


def test_rows_are_bounded_and_the_rest_is_counted(world: World) -> None:
    for number in range((ROWS.pieces or 0) + 3):
        world.worker(f"w{number}", "m", cluster_id=f"c{number}")
    state = world.state()
    assert (len(state.workers), len(state.clusters), len(state.targets)) == (ROWS.pieces, ROWS.pieces, 1)
    assert state.left_out == 6


def test_models_beyond_the_first_are_counted(world: World) -> None:
    world.worker("w", *(f"m{number:02}" for number in range(25)))
    (worker,) = world.state().workers
    assert (worker.models[0], worker.models[-1], worker.models_total) == ("m00", "m19", 25)


def test_the_router_says_since_when_it_runs_and_why_it_is_not_ready(world: World) -> None:
    world.not_ready = ["warming_up"]
    router = world.state().router
    assert (router.uptime_s, router.ready, router.not_ready, router.draining) == (10.0, False, ["warming_up"], False)
    assert [(one.stargate_id, one.serving) for one in router.processes] == [("r-0", True)]


async def test_everything_is_read_at_once(world: World) -> None:
    world.worker("w", "m")
    live = await world.collector.read()
    assert (len(live.state.workers), len(live.history), live.requests) == (1, 60, [])
