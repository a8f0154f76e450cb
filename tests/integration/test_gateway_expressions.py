"""Routing expressions in `x-routing-method` as clients and operators see them; docs/balancing.md, "Expressions"."""

import json
from typing import Any

import pytest
from structlog.testing import capture_logs

from router.balancing.settings import BalancingSettings
from support.gateway_in_memory import GatewayInMemory, PlayedExchange, gateway_in_memory
from support.http_client import HttpAnswer, post

pytestmark = pytest.mark.loop("uvloop")

POLICY = b"""{"default": "power-of-n", "request_algorithms": {"pulsar": "pulsar", "round-robin": "round-robin",
    "wait-and-widen": {"algorithm": "wait-and-widen", "max_queue_time_ceil_ms": 500}},
    "models": {"keyed": {"algorithm": "pulsar", "require_cache_affinity_key": true}}}"""
AS_OF_0_11 = BalancingSettings(affinity_waits=False, expressions=False)
TARGET = {"routing_key": None, "model_id": "m"}


def ok(exchange: PlayedExchange) -> None:
    exchange.answer()


def expressions(harness: GatewayInMemory, *labels: str) -> float:
    return harness.count("routing_expressions_total", *labels)


async def ask(harness: GatewayInMemory, method: str, **headers: Any) -> HttpAnswer:
    return await harness.ask(post(x_routing_method=method, **headers))


def code_of(answer: HttpAnswer) -> str:
    """The code of a 400, which must be the same in its header and its body."""
    assert answer.status == 400
    assert answer.header("content-type") == "application/json"
    body = json.loads(answer.body)
    assert list(body) == ["error", "code"]
    assert body["code"] == answer.header("x-stargate-error-code")
    assert body["error"]
    return str(body["code"])


async def test_an_expression_is_routed_and_logged_when_it_is_new() -> None:
    async with gateway_in_memory(POLICY) as harness:
        worker = harness.worker(on_request=ok)
        with capture_logs() as logs:
            for _ in range(2):
                assert (await ask(harness, "pulsar;seed=a")).status == 200
            assert (await ask(harness, " pulsar; seed=b ")).status == 200
        built = [line for line in logs if line["event"] == "routing expression configuration built"]
        about = {
            "log_level": "info",
            "event": "routing expression configuration built",
            "algorithm": "pulsar",
            **TARGET,
        }
        assert built == [
            {**about, "outcome": "build", "expression": "pulsar;seed=a"},
            {**about, "outcome": "rebuild", "expression": "pulsar; seed=b"},
        ]
        assert [
            expressions(harness, 'algorithm="pulsar"', f'cache="{use}"') for use in ("build", "hit", "rebuild")
        ] == [
            1,
            1,
            1,
        ]
        assert expressions(harness) == 3
        assert harness.count("routing_expression_cache_entries") == 1
        assert all(exchange.header("x-routing-method") is None for exchange in worker.exchanges)


@pytest.mark.parametrize(
    ("method", "code"),
    [
        ("pulsar;widen=2", "unknown_parameter"),
        ("pulsar;rendezvous_weight=max-input-tps", "unknown_parameter"),
        ("round-robin;n=2", "not_applicable"),
        ("wait-and-widen;n=0", "inert_value"),
        ("wait-and-widen;max_queue_time_ceil_ms=100", "inert_combination"),
        ("pulsar;seed=a;seed=b", "malformed_expression"),
        ("pulsar;seed", "malformed_expression"),
        ("pulsar ;seed=a", "malformed_expression"),
        ("pulsar;seed =a", "malformed_expression"),
        ("pulsar;seed=a,b", "malformed_expression"),
        ("pulsar;\tseed=a", "malformed_expression"),
        ("pulsar;seed=caf\xe9", "malformed_expression"),
        (";", "malformed_expression"),
        ("pulsar;seed=" + "a" * 1013, "malformed_expression"),
        ("pulsar" + "".join(f";p{number}=1" for number in range(33)), "malformed_expression"),
        ("round-robin;require_input_tokens=?1", "malformed_expression"),
        ("round-robin;require_input_tokens=1", "invalid_value"),
        ("wait-and-widen;next_bucket_unlock_factor=0.0625", "malformed_expression"),
        ('wait-and-widen;next_bucket_unlock_factor="1e2"', "invalid_value"),
        ("fastest", "unknown_method"),
        ("fastest;seed=a", "unknown_method"),
        ("caf\xe9", "unknown_method"),
        ("", "unknown_method"),
        (" ", "unknown_method"),
        ("random", "unavailable"),
        ("random;require_input_tokens=true", "unavailable"),
    ],
)
async def test_what_cannot_be_used_is_400_with_its_class_in_body_header_and_log(method: str, code: str) -> None:
    policy = POLICY.replace(b', "max_queue_time_ceil_ms": 500', b"")
    async with gateway_in_memory(policy) as harness:
        worker = harness.worker(on_request=ok)
        with capture_logs() as logs:
            answer = await ask(harness, method)
        assert code_of(answer) == code
        (line,) = [line for line in logs if line["event"] == "invalid routing algorithm header"]
        shown = "<invalid-utf8>" if "\xe9" in method or not method.strip() else method.strip()[:1024]
        assert line["requested_algorithm"] == shown
        assert (line["rejection_reason"], line["log_level"]) == (code, "warning")
        assert line["error"] == json.loads(answer.body)["error"]
        assert not worker.exchanges
        assert expressions(harness) == harness.count("requests_total") == 0
        assert harness.count("requests_rejected_total", "x-routing-method", 'status="400"') == 1


async def test_the_messages_that_name_the_culprit() -> None:
    async with gateway_in_memory(POLICY) as harness:
        for method, error in (
            ("fastest", "unknown routing method 'fastest'"),
            ('"quo\\ted"', "unknown routing method '\"quo\\ted\"'"),
            ("pulsar;widen=2", "unknown parameter 'widen' for algorithm pulsar"),
            ("random", "routing method random is not configured for this model"),
            ("pulsar;seed=a;seed=b", "malformed routing expression: duplicate parameter 'seed' at byte 14"),
        ):
            answer = await ask(harness, method)
            assert json.loads(answer.body)["error"] == error


@pytest.mark.parametrize(
    "method",
    [
        "wait-and-widen;max_queue_time_floor_ms=100",
        "round-robin;require_input_tokens=true",
        'round-robin;require_input_tokens="true"',
        'wait-and-widen;next_bucket_unlock_factor="0.0625"',
        "Power_Of_Two;sample_count=3; comparator=queue-time",
        "pulsar;seed=" + "a" * 1012,
    ],
)
async def test_what_is_accepted(method: str) -> None:
    async with gateway_in_memory(POLICY) as harness:
        harness.worker(on_request=ok)
        assert (await ask(harness, method)).status == 200


async def test_two_expressions_in_turn_keep_their_positions_and_a_third_resets_the_older_one() -> None:
    async with gateway_in_memory(POLICY) as harness:
        for name in ("a", "b", "c"):
            harness.worker(name, on_request=ok)
        first, second, third = (f"round-robin;max_input_work_seconds=1000{number}" for number in range(3))
        served = [(await ask(harness, one)).header("x-inference-server-id") for one in (first, second) * 3]
        assert served == ["a", "a", "b", "b", "c", "c"]
        assert (await ask(harness, first)).header("x-inference-server-id") == "a"
        assert (await ask(harness, third)).header("x-inference-server-id") == "a"
        assert (await ask(harness, first)).header("x-inference-server-id") == "b"
        assert (await ask(harness, second)).header("x-inference-server-id") == "a"


async def test_checks_come_in_order_and_an_expression_counts_after_all_of_them() -> None:
    async with gateway_in_memory(POLICY, max_replay_body_bytes=8) as harness:
        harness.worker(model="keyed", on_request=ok)
        asked: dict[str, Any] = {"model": "keyed"}
        assert (await ask(harness, "fastest;a=1", x_input_tokens=None, **asked)).is_empty
        assert code_of(await ask(harness, "fastest;a=1", x_stargate_max_wait_ms="bad", **asked)) == "unknown_method"
        refused = await ask(harness, "pulsar;seed=a", **asked)
        assert (refused.status, refused.is_empty) == (400, True)
        asked["x_cache_affinity_key"] = "k"
        assert (await ask(harness, "pulsar;seed=a", x_stargate_max_wait_ms="bad", **asked)).is_empty
        assert (await ask(harness, "pulsar;seed=a", body=b"too many bytes", **asked)).status == 413
        assert expressions(harness) == harness.count("routing_expression_cache_entries") == 0
        assert (await ask(harness, "pulsar;seed=a", **asked)).status == 200
        assert expressions(harness, 'cache="build"') == 1


async def test_an_expression_may_ask_for_an_affinity_key_or_do_without() -> None:
    async with gateway_in_memory(POLICY) as harness:
        harness.worker(model="keyed", on_request=ok)
        harness.worker("w2", on_request=ok)
        assert (await ask(harness, "pulsar;require_cache_affinity_key=true")).status == 400
        assert (await ask(harness, "pulsar;require_cache_affinity_key=false", model="keyed")).status == 200


async def test_admission_uses_the_limit_of_the_expression() -> None:
    async with gateway_in_memory(POLICY) as harness:
        harness.worker(on_request=ok, queued_input_size=5000)
        assert (await ask(harness, "round-robin;max_input_work_seconds=0.5")).status == 503
        assert (await ask(harness, "round-robin;max_input_work_seconds=50")).status == 200


async def test_the_counter_has_its_series_from_the_start() -> None:
    async with gateway_in_memory() as harness:
        page = harness.metrics.render().decode()
        assert page.count("stargate_routing_expressions_total{") == 18
        assert expressions(harness) == 0
        assert "stargate_routing_expression_cache_entries 0\n" in page


async def test_with_the_older_release_line_an_expression_is_unknown_and_the_answer_is_empty() -> None:
    async with gateway_in_memory(POLICY, balancing=AS_OF_0_11, method_error_bodies=False) as harness:
        harness.worker(on_request=ok)
        for method, reason in (("pulsar;seed=a", "unknown"), ("fastest", "unknown"), ("random", "unavailable")):
            with capture_logs() as logs:
                answer = await ask(harness, method)
            assert (answer.status, answer.is_empty, answer.header("x-stargate-error-code")) == (400, True, None)
            (line,) = [line for line in logs if line["event"] == "invalid routing algorithm header"]
            assert (line["rejection_reason"], line["requested_algorithm"]) == (reason, method)
        assert (await ask(harness, "pulsar")).status == 200
        assert "routing_expression" not in harness.metrics.render(additional=True).decode()
