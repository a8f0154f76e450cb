"""The policy in effect: what is taken, what is refused, and how often that is told."""

import json
import os
from pathlib import Path
from random import Random

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from router.balancing import BalancingConfig, ConfigError, load_config
from router.balancing.definition import Definition
from router.balancing.dry_run import dry_run
from router.config.cli import parse
from router.config.startup_checks import StartupError
from router.process.policy import Policy
from router.telemetry.metrics import Metrics


def load(path: Path) -> tuple[Policy, Metrics]:
    base = ["--stargate-id=r", "--advertise-addr=127.0.0.1:50071", "--stargate-discovery-dns-name=x"]
    metrics = Metrics()
    return Policy.load(parse([*base, f"--lb-config-path={path}"], {}), metrics), metrics


@pytest.mark.parametrize(
    "content",
    [
        b'{"models":{"\\ud800":"random"}}',
        b'{"request_algorithms":{"\\ud800":"round-robin"}}',
        b'{"models":{"m":{"algorithm":"power-of-n","\\ud83d":1}}}',
        b"[" * 100_000,
        b"\xff\xfe{",
        b'{"models":{"m":{"algorithm":"wait-and-widen","cache_affinity_virtual_nodes":1000000000}}}',
        b'{"models":{"m":{"algorithm":"power-of-n","max_input_work_seconds":NaN}}}',
        b'{"request_algorithms":{"random":"round-robin"}}',
    ],
)
async def test_a_document_that_cannot_be_used_is_told_once_in_a_line_that_can_be_written(
    tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "lb.json"
    path.write_bytes(b"{}")
    policy, metrics = load(path)
    path.write_bytes(content)
    with structlog.testing.capture_logs() as lines:
        await policy.poll()
        await policy.poll()
    (line,) = lines
    json.dumps(line, ensure_ascii=False).encode()
    assert metrics.lb_config_last_reload_success.value() == 0
    with pytest.raises(StartupError) as caught:
        load(path)
    caught.value.report().encode()


async def test_each_state_of_a_file_that_cannot_be_read_is_told_once(tmp_path: Path) -> None:
    path = tmp_path / "lb.json"
    path.write_bytes(b"{}")
    policy, metrics = load(path)

    async def told() -> list[str]:
        with structlog.testing.capture_logs() as lines:
            await policy.poll()
            await policy.poll()
        return [line["error"] for line in lines if line["log_level"] == "warning"]

    path.unlink()
    assert await told() == ["No such file or directory (os error 2)"]
    os.mkfifo(path)
    assert await told() == ["not a regular file"]
    path.unlink()
    path.write_bytes(b"")
    assert await told() == ["Expecting value at line 1 column 1"]
    path.write_bytes(b"{}")
    assert await told() == []
    assert metrics.lb_config_last_reload_success.value() == 1
    path.write_bytes(b'{"default":"random"}')
    assert await told() == []
    assert metrics.lb_config_reloads_total.value(("success",)) == 1


def test_a_file_that_is_no_regular_one_ends_the_start(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "lb.json")
    with pytest.raises(StartupError, match="failed to read lb config file"):
        load(tmp_path / "lb.json")


class Failing:
    """An installed algorithm whose decisions raise."""

    def __init__(self, settings: dict[str, object], random: Random) -> None:
        if "broken" in settings:
            raise KeyboardInterrupt if settings["broken"] == "badly" else LookupError("no such thing")

    def balancer(self, routing_key: str | None, model: str) -> "Failing":
        return self

    def choose(self, *_given: object) -> None:
        raise ZeroDivisionError("division by zero")


def test_an_installed_algorithm_that_cannot_decide_is_not_taken() -> None:
    for settings, text in (({}, "ZeroDivisionError: division by zero"), ({"broken": 1}, "no such thing")):
        config = BalancingConfig(Definition("failing", settings), {})
        with pytest.raises(ConfigError, match=text):
            dry_run(config, {"failing": Failing})  # type: ignore[dict-item]


def test_a_policy_whose_decisions_take_too_long_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 1_000, 3))
    monkeypatch.setattr("time.monotonic", lambda: float(next(clock)))
    with pytest.raises(ConfigError, match="take more than 2 s"):
        dry_run(BalancingConfig(), {})


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=4,
)
FIELDS = st.sampled_from(
    [
        "sample_count",
        "comparator",
        "seed",
        "n",
        "max_queued",
        "max_queue_time_floor_ms",
        "max_queue_time_ceil_ms",
        "ttft_bucket_size_ms",
        "next_bucket_unlock_factor",
        "cache_affinity_virtual_nodes",
        "cache_affinity_backend_selection_count",
        "max_input_work_seconds",
        "consider_kv_free_tokens",
        "ignore_queue_time",
        "request_algorithms",
    ]
)
NUMBERS = st.sampled_from([0, 1, -1, 2, 64, 65, 10_000, 1 << 63, (1 << 64) - 1, 1 << 64, 1e308, -1e308, 0.5, 5e-324])
ALGORITHMS = st.sampled_from(
    ["power-of-n", "wait-and-widen", "round-robin", "random", "pulsar", "pulsar-wait-and-widen"]
)


@given(ALGORITHMS, st.dictionaries(FIELDS, NUMBERS | VALUES, max_size=4))
def test_whatever_is_accepted_decides_and_whatever_is_not_raises_one_kind_of_error(
    algorithm: str, fields: dict[str, object]
) -> None:
    document = json.dumps({"models": {"m": {"algorithm": algorithm, **fields}}}).encode()
    try:
        dry_run(load_config(document), {})
    except ConfigError as error:
        str(error).encode()
