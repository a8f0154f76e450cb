"""What the parameters of a routing expression do to the configured settings, and which of them are refused with which class."""

import random
from dataclasses import dataclass
from typing import Any

import pytest

from router.balancing import Fields, registration
from router.balancing.algorithm import MakeAlgorithm
from router.balancing.catalog import Catalog
from router.balancing.definition import Definition, build, checked_definition
from router.balancing.expression import parse_expression
from router.balancing.expression_settings import overlaid
from router.balancing.method_error import MethodError, MethodErrorCode

ALL = ("power-of-n", "round-robin", "random", "wait-and-widen", "pulsar", "pulsar-wait-and-widen")
WIDENING = ("wait-and-widen", "pulsar-wait-and-widen")
PARAMETERS: dict[str, tuple[tuple[str, ...], list[tuple[str, object]]]] = {
    "require_cache_affinity_key": (ALL, [("true", True), ('"false"', False)]),
    "require_input_tokens": (ALL, [("true", True), ('"true"', True)]),
    "max_input_work_seconds": (ALL, [("0.5", 0.5), ("3", 3.0), ('"0.0001"', 0.0001)]),
    "sample_count": (("power-of-n",), [("1", 1), ("64", 64), ('"007"', 7)]),
    "comparator": (("power-of-n", "wait-and-widen"), [("queue-time", "queue-time"), ('"utilization"', "utilization")]),
    "seed": (("pulsar", *WIDENING), [("a", "a"), ('"a b"', "a b"), ('""', ""), ("true", "true")]),
    "consider_kv_free_tokens": (("pulsar", "pulsar-wait-and-widen"), [("true", True)]),
    "n": (WIDENING, [("1", 1), ("1000000", 1_000_000)]),
    "max_queued": (WIDENING, [("0", 0), ('"18446744073709551615"', (1 << 64) - 1)]),
    "ttft_bucket_size_ms": (WIDENING, [("1", 1)]),
    "next_bucket_unlock_factor": (WIDENING, [('"0.0625"', 0.0625), ("-1.5", -1.5), ('"+2"', 2.0), ("0", 0.0)]),
    "ignore_queue_time": (WIDENING, [("true", True)]),
    "ignore_input_processing_time": (WIDENING, [("true", True)]),
    "cache_affinity_virtual_nodes": (("wait-and-widen",), [("1", 1), ("1024", 1024)]),
    "cache_affinity_backend_selection_count": (WIDENING, [("1", 1)]),
    "cache_affinity_input_tokens_scale": (WIDENING, [("0", 0.0), ("1.000", 1.0), ("0.25", 0.25)]),
    "cache_affinity_wait_ms": (WIDENING, [("0", 0), ("200", 200)]),
    "band_widen_interval_ms": (("pulsar-wait-and-widen",), [("0", 0)]),
    "fallback_max_queued": (("pulsar-wait-and-widen",), [("4", 4)]),
}
CASES = [
    (name, one, text, value) for name, (who, values) in PARAMETERS.items() for one in who for text, value in values
]
LIMITS = ("max_queue_time_floor_ms", "max_queue_time_ceil_ms")


def overlay(text: str, plugins: dict[str, MakeAlgorithm] | None = None, **base: Any) -> dict[str, object]:
    catalog = Catalog(plugins)
    expression = parse_expression(text.encode())
    algorithm = catalog.from_header(expression.method)
    assert algorithm is not None
    settings = overlaid(checked_definition(algorithm, base, catalog), expression, catalog)
    build(Definition(algorithm, settings), random.Random(0), catalog)
    return dict(settings)


def refusal(text: str, plugins: dict[str, MakeAlgorithm] | None = None, **base: Any) -> MethodError:
    with pytest.raises(MethodError) as raised:
        overlay(text, plugins, **base)
    return raised.value


@pytest.mark.parametrize(("name", "algorithm", "text", "value"), CASES)
def test_a_parameter_is_the_setting_of_that_name(name: str, algorithm: str, text: str, value: object) -> None:
    found = overlay(f"{algorithm};{name}={text}")
    assert found == {name: value}
    assert type(found[name]) is type(value)


@pytest.mark.parametrize("name", [*PARAMETERS, *LIMITS])
def test_a_parameter_of_another_algorithm_is_not_applicable(name: str) -> None:
    for algorithm in set(ALL) - set(PARAMETERS.get(name, (WIDENING,))[0]):
        error = refusal(f"{algorithm};{name}=1")
        assert error.code is MethodErrorCode.NOT_APPLICABLE, algorithm
        assert str(error) == f"parameter '{name}' does not apply to algorithm {algorithm}"
        assert error.position == len(algorithm) + 1


def test_a_parameter_that_no_algorithm_has_is_unknown() -> None:
    error = refusal("pulsar;widen=2")
    assert (error.code, str(error)) == ("unknown_parameter", "unknown parameter 'widen' for algorithm pulsar")
    for name in ("rendezvous_weight", "algorithm", "request_algorithms"):
        assert refusal(f"pulsar;{name}=last-mean-input-tps").code is MethodErrorCode.UNKNOWN_PARAMETER


def test_parameters_override_what_is_configured_and_the_rest_stays() -> None:
    base = {"n": 4, "max_queued": 7, "seed": "s", "max_input_work_seconds": 2}
    found = overlay("wait-and-widen;max_queued=1;comparator=queue-time", **base)
    assert found == {"n": 4, "max_queued": 1, "seed": "s", "max_input_work_seconds": 2, "comparator": "queue-time"}


@pytest.mark.parametrize(
    "text",
    [
        "round-robin;require_input_tokens=1",
        "round-robin;require_input_tokens=yes",
        "round-robin;require_input_tokens=True",
        "round-robin;max_input_work_seconds=-0.5",
        "round-robin;max_input_work_seconds=a",
        "power-of-n;sample_count=0",
        "power-of-n;sample_count=65",
        "power-of-n;sample_count=-1",
        "power-of-n;sample_count=2.0",
        "power-of-n;sample_count=two",
        'power-of-n;sample_count="+2"',
        "power-of-n;comparator=fastest",
        "power-of-n;comparator=1",
        "pulsar;seed=1",
        "pulsar;seed=1.5",
        'wait-and-widen;max_queued="18446744073709551616"',
        f'wait-and-widen;max_queued="{"9" * 900}"',
        'wait-and-widen;next_bucket_unlock_factor="1e2"',
        'wait-and-widen;next_bucket_unlock_factor=".5"',
        'wait-and-widen;next_bucket_unlock_factor="5."',
        'wait-and-widen;next_bucket_unlock_factor="NaN"',
        "wait-and-widen;next_bucket_unlock_factor=inf",
        f'wait-and-widen;next_bucket_unlock_factor="{"9" * 400}"',
        "wait-and-widen;cache_affinity_virtual_nodes=0",
        "wait-and-widen;cache_affinity_virtual_nodes=1025",
        "wait-and-widen;cache_affinity_input_tokens_scale=1.001",
        "wait-and-widen;cache_affinity_input_tokens_scale=-0.001",
        "wait-and-widen;n=-1",
    ],
)
def test_a_value_of_another_type_or_out_of_range_is_invalid(text: str) -> None:
    error = refusal(text)
    assert error.code is MethodErrorCode.INVALID_VALUE
    assert error.position == text.index("=") + 1
    assert f"'{text[text.index(';') + 1 : text.index('=')]}'" in str(error)
    assert len(str(error)) < 700


def test_a_value_that_turns_its_setting_off_is_inert() -> None:
    for name in ("n", "ttft_bucket_size_ms", "cache_affinity_backend_selection_count"):
        for algorithm in WIDENING:
            assert refusal(f"{algorithm};{name}=0").code is MethodErrorCode.INERT_VALUE
    for algorithm in ALL:
        assert refusal(f"{algorithm};max_input_work_seconds=0.0").code is MethodErrorCode.INERT_VALUE
    error = refusal("wait-and-widen;n=0")
    assert (str(error), error.position) == ("parameter 'n' has no effect with the value 0", 17)


@pytest.mark.parametrize("algorithm", WIDENING)
def test_one_half_of_the_queue_limit_is_inert_unless_the_other_is_configured(algorithm: str) -> None:
    for name, other in (LIMITS, LIMITS[::-1]):
        error = refusal(f"{algorithm};n=1;{name}=100")
        assert error.code is MethodErrorCode.INERT_COMBINATION
        assert str(error) == f"parameter '{name}' has no effect without {other}"
        assert error.position == len(algorithm) + 5
        assert overlay(f"{algorithm};{name}=100", **{other: 200}) == {other: 200, name: 100}
        assert overlay(f"{algorithm};{name}=0;{other}=0") == {name: 0, other: 0}
        # What is configured without the other half stays as it is.
        assert overlay(f"{algorithm};n=1", **{name: 5}) == {name: 5, "n": 1}


# --- algorithms of other packages


@dataclass(frozen=True)
class Own:
    least: int
    most: int

    @classmethod
    def read(cls, fields: Fields) -> "Own":
        found = cls(fields.unsigned("least", 0), fields.unsigned("n", 9))
        if found.least > found.most:
            fields.refuse("least is more than n")
        return found


class Chooser:
    def __init__(self, settings: object, source: object) -> None:
        self.settings = settings

    def balancer(self, routing_key: object, model: object) -> "Chooser":
        return self

    def choose(self, *_: object) -> None:
        return None


PLUGINS: dict[str, MakeAlgorithm] = {"declared": registration("declared", Own.read, Chooser), "plain": Chooser}


def test_settings_that_a_plug_in_declares_are_its_parameters_by_its_own_rules() -> None:
    assert overlay("declared;least=2;n=3", PLUGINS, n=1) == {"least": 2, "n": 3}
    assert overlay("declared;n=0;max_input_work_seconds=1", PLUGINS) == {"n": 0, "max_input_work_seconds": 1.0}
    assert refusal("declared;least=-1", PLUGINS).code is MethodErrorCode.INVALID_VALUE
    error = refusal("declared;least=5", PLUGINS, n=4)
    assert (error.code, str(error), error.position) == ("invalid_value", "least is more than n", None)
    assert refusal("declared;seed=a", PLUGINS).code is MethodErrorCode.NOT_APPLICABLE
    assert refusal("pulsar;least=1", PLUGINS).code is MethodErrorCode.NOT_APPLICABLE
    assert refusal("pulsar;least=1").code is MethodErrorCode.UNKNOWN_PARAMETER


def test_of_a_plug_in_that_declares_no_settings_only_those_of_every_algorithm_are_parameters() -> None:
    assert overlay("plain;require_cache_affinity_key=true", PLUGINS, own=1) == {
        "own": 1,
        "require_cache_affinity_key": True,
    }
    assert refusal("plain;n=1", PLUGINS).code is MethodErrorCode.NOT_APPLICABLE
    assert refusal("plain;own=1", PLUGINS).code is MethodErrorCode.UNKNOWN_PARAMETER


def test_the_names_of_a_document_and_the_types_of_an_expression_are_the_same() -> None:
    """Every setting of a built-in algorithm is a parameter, but for those that have no effect or are for documents only."""
    catalog = Catalog()
    for algorithm in ALL:
        registered = catalog.registration(algorithm)
        assert registered is not None
        offered = {name for name, (who, _) in PARAMETERS.items() if algorithm in who} | (
            set(LIMITS) if algorithm in WIDENING else set()
        )
        missing = registered.fields - offered
        expected = {"rendezvous_weight"} & registered.fields
        if algorithm == "pulsar-wait-and-widen":
            expected |= {"comparator", "cache_affinity_virtual_nodes"}
        assert missing == expected
