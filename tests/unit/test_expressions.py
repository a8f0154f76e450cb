"""Which routing expressions are kept for a target, for how long, with which state, and within which bounds."""

import json
import random
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
from structlog.testing import capture_logs

from router.balancing import Chosen, MethodError, Selector, load_config
from router.balancing.explain import explain
from router.balancing.expressions import (
    DEFINITION_BYTES,
    EXPRESSION_TARGETS,
    IDLE_S,
    ExpressionDefinition,
    Expressions,
    ExpressionUse,
)
from router.balancing.settings import CURRENT
from router.operators.explain_command import render_text
from router.proxy.method_header import MethodHeader
from router.telemetry.metrics import Metrics
from support.balancing import EARLIER, FakeCandidate, FakeTarget, request
from support.package_settings import proxy_settings

HIT, BUILD, REBUILD = ExpressionUse.HIT, ExpressionUse.BUILD, ExpressionUse.REBUILD
TURNS = "round-robin;require_input_tokens="
KINDS = [b"round-robin;max_input_work_seconds=1000%d" % number for number in range(3)]


def selector(plugins: Any = None, **document: Any) -> Selector:
    document.setdefault("request_algorithms", {"round-robin": "round-robin", "pulsar": "pulsar"})
    content = json.dumps(document).encode()
    return Selector(load_config(content, plugins), random.Random(0), plugins)


def of(policy: Selector) -> Expressions:
    assert policy.expressions is not None
    return policy.expressions


def used(policy: Selector, value: bytes, model: str = "m", now: float = 0.0) -> tuple[ExpressionDefinition, str]:
    definition = of(policy).resolve(value, "key", model)
    return definition, of(policy).keep(definition, "key", model, now)


def clusters(*cluster_ids: str) -> FakeTarget:
    return FakeTarget(*(FakeCandidate(name, last_mean_input_tps=1000.0) for name in cluster_ids))


def chosen(policy: Selector, target: FakeTarget, definition: Any, model: str = "m") -> str:
    found = policy.select(
        definition,
        request(routing_key="key", model_id=model, input_tokens=10),
        target,
        advertised=bool,
        failed_backends=set(),
        failed_clusters=set(),
        now=0.0,
    )
    assert isinstance(found, Chosen)
    return found.candidate.cluster_id


# --- what is kept


def test_the_last_two_expressions_of_a_target_are_kept() -> None:
    policy = selector()
    a, b, c = KINDS
    first, use = used(policy, a)
    assert use is BUILD
    assert used(policy, a) == (first, HIT)
    second, use = used(policy, b)
    assert use is REBUILD
    for _ in range(2):
        assert used(policy, a) == (first, HIT)
        assert used(policy, b) == (second, HIT)
    assert used(policy, c)[1] is REBUILD
    assert used(policy, b) == (second, HIT)
    assert used(policy, a)[1] is REBUILD
    assert used(policy, a, model="another")[1] is BUILD
    assert len(of(policy)) == 2


def test_expressions_are_compared_byte_for_byte() -> None:
    policy = selector()
    assert used(policy, b"pulsar;seed=a")[1] is BUILD
    assert used(policy, b"pulsar; seed=a")[1] is REBUILD
    assert used(policy, b"Pulsar;seed=a")[1] is REBUILD


def test_two_expressions_in_turn_keep_their_positions_and_a_third_ends_the_older_one() -> None:
    policy, target = selector(), clusters("c1", "c2", "c3")
    a, b, c = KINDS
    assert [chosen(policy, target, used(policy, value)[0]) for value in (a, b, a, b, a)] == [
        "c1",
        "c1",
        "c2",
        "c2",
        "c3",
    ]
    assert len(target.balancer_state) == 2
    assert chosen(policy, target, used(policy, c)[0]) == "c1"
    assert chosen(policy, target, used(policy, a)[0]) == "c1"
    assert chosen(policy, target, used(policy, b)[0]) == "c1"
    assert len(target.balancer_state) == 2


def test_a_definition_of_the_configuration_and_one_of_an_expression_do_not_share_their_state() -> None:
    policy, target = selector(default="round-robin"), clusters("c1", "c2")
    expressed = used(policy, b"round-robin;require_input_tokens=true")[0]
    plain = policy.resolve("m", "round-robin")
    assert [chosen(policy, target, one) for one in (expressed, plain, expressed, plain)] == ["c1", "c1", "c2", "c2"]


def test_a_request_whose_expression_is_no_longer_kept_is_decided_and_leaves_no_state_behind() -> None:
    policy, target = selector(), clusters("c1", "c2")
    running = used(policy, KINDS[0])[0]
    chosen(policy, target, running)
    later = [used(policy, value)[0] for value in KINDS[1:]]
    assert not target.balancer_state
    assert chosen(policy, target, running) == "c1"
    for definition in later:
        chosen(policy, target, definition)
    assert set(target.balancer_state) == set(later)


def test_a_new_configuration_is_laid_under_every_expression() -> None:
    policy, target = selector(), clusters("c1", "c2")
    old = used(policy, b"pulsar;seed=a")[0]
    chosen(policy, target, old)
    tuned = {"pulsar": {"algorithm": "pulsar", "consider_kv_free_tokens": True}}
    policy.replace_config(load_config(json.dumps({"request_algorithms": tuned}).encode()))
    assert (len(of(policy)), of(policy).held_bytes, target.balancer_state) == (0, 0, {})
    new, use = used(policy, b"pulsar;seed=a")
    assert use is BUILD
    assert new.settings == {"seed": "a", "consider_kv_free_tokens": True}


# --- the base


def test_an_expression_is_laid_over_what_the_plain_name_would_get() -> None:
    policy = selector(
        default="random",
        request_algorithms={"wait-and-widen": {"algorithm": "wait-and-widen", "n": 3}},
        models={
            "own": {"algorithm": "wait-and-widen", "n": 4},
            "override": {
                "algorithm": "random",
                "request_algorithms": {"wait-and-widen": {"algorithm": "wait-and-widen", "n": 5}},
            },
            "pulsar": "pulsar",
        },
    )
    for model, n in (("unlisted", 3), ("own", 4), ("override", 5), ("pulsar", 3)):
        definition = of(policy).resolve(b"groq_multiregion;max_queued=1", None, model)
        assert (definition.algorithm, definition.settings) == ("wait-and-widen", {"n": n, "max_queued": 1}), model
        assert policy.resolve(model, "wait-and-widen").settings == {"n": n}
    for model in ("unlisted", "pulsar"):
        with pytest.raises(MethodError, match="routing method power-of-n is not configured for this model") as raised:
            of(policy).resolve(b"powerOf2;sample_count=99;widen=1", None, model)
        assert (raised.value.code, raised.value.position) == ("unavailable", 0)
    with pytest.raises(MethodError, match="unknown routing method 'fastest'") as raised:
        of(policy).resolve(b" fastest;seed=a", None, "own")
    assert (raised.value.code, raised.value.position) == ("unknown_method", 1)


def test_settings_of_every_algorithm_are_in_force() -> None:
    found = used(selector(), b"pulsar;require_cache_affinity_key=true;max_input_work_seconds=2.5")[0]
    assert found.require_cache_affinity_key
    assert found.max_input_work_seconds == 2.5


def test_an_algorithm_that_checks_its_settings_only_when_it_is_made_refuses_them_as_invalid() -> None:
    class Picky:
        def __init__(self, settings: dict[str, object], source: object) -> None:
            if settings.get("require_cache_affinity_key"):
                raise ValueError("needs no key")

        def balancer(self, *_: object) -> "Picky":
            return self

        def choose(self, *_: object) -> None:
            return None

    plugins = {"picky": Picky}
    policy = selector(plugins, default="picky", request_algorithms={})
    with pytest.raises(MethodError, match="picky: needs no key") as raised:
        used(policy, b"picky;require_cache_affinity_key=true")
    assert raised.value.code == "invalid_value"


# --- bounds


def test_what_is_idle_for_a_quarter_of_an_hour_ends_with_its_state() -> None:
    policy, target = selector(), clusters("c1", "c2")
    for model, now in (("m", 0.0), ("other", 100.0), ("m", 500.0)):
        chosen(policy, target, used(policy, KINDS[0], model, now)[0], model)
    of(policy).expire(100.0 + IDLE_S - 1)
    assert len(of(policy)) == 2
    of(policy).expire(100.0 + IDLE_S)
    assert (len(of(policy)), len(target.balancer_state)) == (1, 1)
    assert used(policy, KINDS[0], "other", 500.0 + IDLE_S)[1] is BUILD
    assert len(of(policy)) == 1


def test_the_targets_with_kept_expressions_are_bounded_in_number_and_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("router.balancing.expressions._MAX_TARGETS", 3)
    policy = selector()
    for number in range(5):
        used(policy, KINDS[0], f"m{number}")
    used(policy, KINDS[0], "m2")
    used(policy, KINDS[0], "m5")
    assert [used(policy, KINDS[0], f"m{number}")[1] for number in (5, 2, 4)] == [HIT, HIT, HIT]
    assert used(policy, KINDS[0], "m3")[1] is BUILD
    monkeypatch.setattr("router.balancing.expressions._MAX_BYTES", 100_000)
    used(policy, KINDS[1], "m" * 70_000)
    assert of(policy).held_bytes <= 100_000
    assert used(policy, KINDS[1], "m" * 70_000)[1] is HIT
    used(policy, KINDS[0], "n" * 70_000)
    assert len(of(policy)) == 1
    of(policy).clear()
    assert of(policy).held_bytes == 0


def test_the_real_bounds_hold_when_every_request_has_another_target() -> None:
    policy = selector()
    expressions = of(policy)
    definition = expressions.resolve(KINDS[0], "key", "m")
    for number in range(20_000):
        expressions.keep(definition, "key", f"m{number}", 0.0)
        assert expressions.held_bytes <= (EXPRESSION_TARGETS.bytes or 0)
    assert len(expressions) == EXPRESSION_TARGETS.pieces


def test_the_definition_of_a_long_expression_takes_no_more_than_it_counts_as() -> None:
    policy = selector(request_algorithms={"pulsar-wait-and-widen": "pulsar-wait-and-widen"})
    value = (
        b"pulsar-wait-and-widen;n=3;max_queued=2;max_queue_time_floor_ms=1000;max_queue_time_ceil_ms=2000"
        b";ttft_bucket_size_ms=300;next_bucket_unlock_factor=0.5;ignore_queue_time=true;band_widen_interval_ms=1000"
        b";ignore_input_processing_time=true;cache_affinity_backend_selection_count=300;fallback_max_queued=1000"
        b";cache_affinity_input_tokens_scale=0.5;cache_affinity_wait_ms=1000;consider_kv_free_tokens=true"
        b";require_cache_affinity_key=true;require_input_tokens=true;max_input_work_seconds=1000;seed=s"
    )
    values = [value + b"%03d" % number + b"a" * 400 for number in range(100)]
    used(policy, value + b"warm")
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        found = [of(policy).resolve(one, "key", "m") for one in values]
        taken = (tracemalloc.get_traced_memory()[0] - before) / len(found)
    finally:
        tracemalloc.stop()
    assert taken < DEFINITION_BYTES


# --- the header


class Header:
    """The header of a proxy, with a clock and timers that the test turns."""

    def __init__(self, policy: Selector, *, bodies: bool = True) -> None:
        self.metrics = Metrics()
        self.now = 0.0
        self.timers: list[tuple[float, Callable[[], None]]] = []
        settings = proxy_settings(method_error_bodies=bodies)
        self.header = MethodHeader(policy, self.metrics, settings, lambda: self.now, self._call_later)

    def _call_later(self, delay: float, call: Callable[[], None]) -> None:
        self.timers.append((self.now + delay, call))

    def ask(self, value: bytes, model: str = "m") -> None:
        definition = self.header.resolve(value, value.decode(), "key", model, self.now)
        self.header.accepted(definition, "key", model, self.now)

    def entries(self) -> str:
        (line,) = [
            line
            for line in self.metrics.render().decode().splitlines()
            if line.startswith("stargate_routing_expression_cache_entries ")
        ]
        return line.split()[1]


def test_idle_expressions_are_dropped_within_a_minute_without_further_requests() -> None:
    header = Header(selector())
    assert header.entries() == "0"
    for value in (*KINDS, b"round-robin"):
        header.ask(value)
    header.ask(KINDS[0], "other")
    assert (header.entries(), len(header.timers)) == ("2", 1)
    while header.timers:
        (header.now, sweep), *header.timers = header.timers
        sweep()
        assert len(header.timers) <= 1
    assert header.now <= IDLE_S + 60
    assert header.entries() == "0"
    header.ask(KINDS[0])
    assert (header.entries(), len(header.timers)) == ("1", 1)


def test_every_series_of_the_counter_is_there_from_the_start() -> None:
    header = Header(selector())
    lines = [line for line in header.metrics.render().decode().splitlines() if "routing_expressions_total{" in line]
    assert len(lines) == 18
    assert all(line.endswith(" 0") for line in lines)
    earlier = Header(Selector(load_config(b"{}"), random.Random(0), settings=EARLIER))
    assert b"routing_expression" not in earlier.metrics.render()


def test_an_expired_expression_is_built_anew_for_the_request_that_comes_after_it() -> None:
    header = Header(selector())
    header.ask(KINDS[0])
    header.now = IDLE_S
    header.ask(KINDS[0])
    assert header.metrics.routing_expressions_total.value(("round-robin", "build")) == 2


def test_with_the_older_release_line_an_expression_is_an_unknown_method() -> None:
    policy = Selector(load_config(b"{}"), random.Random(0), settings=EARLIER)
    assert policy.expressions is None
    header = Header(policy, bodies=False)
    with capture_logs() as logs, pytest.raises(MethodError, match="unknown routing method"):
        header.ask(b"power-of-n;sample_count=2")
    (line,) = logs
    assert line["rejection_reason"] == "unknown"
    assert "error" not in line
    with pytest.raises(MethodError):
        policy.in_force(None, "m", "power-of-n;sample_count=2")
    header.ask(b"power-of-n")
    assert CURRENT.expressions


# --- explanations


def explained(policy: Selector, method: str | None, target: FakeTarget | None = None) -> dict[str, Any]:
    asked = request(routing_key="key", model_id="m", input_tokens=10)
    return explain(policy, asked, method, target, advertised=True, excluded=set(), now=0.0)


def test_an_explanation_shows_the_expression_in_force_and_the_settings_with_it() -> None:
    policy, target = selector(default="round-robin"), clusters("c1", "c2")
    assert explained(policy, None)["algorithm"]["expression"] is None
    document = explained(policy, "pulsar;seed=a", target)
    assert document["algorithm"]["expression"] == "pulsar;seed=a"
    assert document["algorithm"]["requested"] == "pulsar;seed=a"
    assert document["algorithm"]["settings"] == {"seed": "a"}
    assert "expression in force: pulsar;seed=a\n" in render_text(document)
    assert len(of(policy)) == 0
    value = TURNS + "true"
    chosen(policy, target, used(policy, value.encode())[0])
    for _ in range(2):
        assert explained(policy, value, target)["outcome"]["cluster_id"] == "c2"
    assert explained(policy, TURNS + "false", target)["outcome"]["cluster_id"] == "c1"
    with pytest.raises(MethodError, match="malformed"):
        explained(policy, "pulsar;\udcff")
