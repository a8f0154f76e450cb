"""The settings of affinity waits, bands and the weight of a ranking: what is accepted, for which algorithm and release line."""

import json
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from router.balancing import ConfigError, load_config
from router.balancing.catalog import Catalog
from router.balancing.definition import checked_definition
from router.balancing.dry_run import dry_run
from router.balancing.settings import CURRENT, BalancingSettings
from router.config.cli import parse
from router.config.startup_checks import StartupError
from router.process.policy import Policy
from router.telemetry.metrics import Metrics
from support.package_settings import REQUIRED

EARLIER = BalancingSettings(affinity_waits=False, expressions=False)
BOTH = ("wait-and-widen", "pulsar-wait-and-widen")
RANKING = ("pulsar", "pulsar-wait-and-widen")
CASES = [
    *((name, "cache_affinity_wait_ms", 200) for name in BOTH),
    *((name, "cache_affinity_input_tokens_scale", 0.5) for name in BOTH),
    *((name, "rendezvous_weight", "last-mean-input-tps") for name in RANKING),
    ("pulsar-wait-and-widen", "band_widen_interval_ms", 100),
    ("pulsar-wait-and-widen", "fallback_max_queued", 3),
]


def load(settings: BalancingSettings = CURRENT, algorithm: str = "wait-and-widen", **fields: Any) -> None:
    content = json.dumps({"models": {"m": {"algorithm": algorithm, **fields}}}).encode()
    dry_run(load_config(content, settings=settings), {}, settings)


@pytest.mark.parametrize(("algorithm", "key", "value"), CASES)
def test_the_keys_of_0_18_are_known_to_it_only(algorithm: str, key: str, value: object) -> None:
    load(CURRENT, algorithm, **{key: value})
    with pytest.raises(ConfigError, match=rf"{algorithm} config does not support field\(s\): {key}$"):
        load(EARLIER, algorithm, **{key: value})


@pytest.mark.parametrize("algorithm", BOTH)
@pytest.mark.parametrize("value", [0, 1, 1.0, 0.0, 0.25, None])
def test_any_share_of_the_input_tokens_may_count(algorithm: str, value: float | None) -> None:
    load(algorithm=algorithm, cache_affinity_wait_ms=200, cache_affinity_input_tokens_scale=value)


@pytest.mark.parametrize("algorithm", BOTH)
@pytest.mark.parametrize("value", [1.5, -0.1, float("nan"), float("inf"), True, "1"])
def test_a_share_of_the_input_tokens_that_is_none_is_refused(algorithm: str, value: object) -> None:
    with pytest.raises(ConfigError):
        load(algorithm=algorithm, cache_affinity_input_tokens_scale=value)
    with pytest.raises(ConfigError, match="cache_affinity_input_tokens_scale"):
        checked_definition(algorithm, {"cache_affinity_input_tokens_scale": value}, Catalog())


@pytest.mark.parametrize("key", ["cache_affinity_wait_ms", "band_widen_interval_ms", "fallback_max_queued"])
@pytest.mark.parametrize("value", [-1, 2**64, 0.5, "1", False])
def test_times_and_limits_are_unsigned_integers(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"expected an unsigned integer for `{key}`"):
        load(algorithm="pulsar-wait-and-widen", **{key: value})


@pytest.mark.parametrize("key", ["band_widen_interval_ms", "fallback_max_queued", "rendezvous_weight"])
@pytest.mark.parametrize("value", [0, None, "max-input-tps"])
def test_what_belongs_to_rankings_is_refused_for_wait_and_widen(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=rf"wait-and-widen config does not support field\(s\): {key}$"):
        load(**{key: value})


@pytest.mark.parametrize("algorithm", RANKING)
def test_the_greatest_rate_cannot_weight_a_ranking_while_workers_cannot_report_it(algorithm: str) -> None:
    with pytest.raises(ConfigError, match="the worker protocol does not carry max_input_tps yet"):
        load(algorithm=algorithm, rendezvous_weight="max-input-tps")
    with pytest.raises(ConfigError, match="unknown variant `input-tps`, expected one of `max-input-tps`"):
        load(algorithm=algorithm, rendezvous_weight="input-tps")
    with pytest.raises(ConfigError, match="invalid type: null"):
        load(algorithm=algorithm, rendezvous_weight=None)


@pytest.mark.parametrize("compat", ["0.18", "0.11"])
def test_the_release_line_decides_whether_a_document_of_0_18_ends_the_start(compat: str, tmp_path: Path) -> None:
    path = tmp_path / "lb.json"
    path.write_text('{"models": {"m": {"algorithm": "wait-and-widen", "cache_affinity_wait_ms": 200}}}')
    settings = parse([*REQUIRED, f"--lb-config-path={path}", f"--compat={compat}"], {})
    with capture_logs():
        if compat == "0.18":
            assert Policy.load(settings, Metrics()).watched
            return
        with pytest.raises(StartupError) as refused:
            Policy.load(settings, Metrics())
    assert refused.value.args[0] == f"failed to parse lb config file: {path}"
