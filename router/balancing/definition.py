"""One configured algorithm: its name and settings, checked field by field, and the algorithm object built from them."""

from collections.abc import Mapping
from random import Random

from router.balancing.algorithm import Algorithm, MakeAlgorithm
from router.balancing.estimates import comparators
from router.balancing.json_document import JsonObject
from router.balancing.names import accepted, from_file
from router.balancing.power_of_n import PowerOfN
from router.balancing.pulsar import Pulsar
from router.balancing.pulsar_wait_and_widen import PulsarWaitAndWiden
from router.balancing.random_choice import RandomChoice
from router.balancing.round_robin import RoundRobin
from router.balancing.wait_and_widen import WaitAndWiden
from router.balancing.widening import WideningSettings
from tunnel_protocol.limit import Limit
from tunnel_protocol.unsigned import MAX_U64

COMPARATORS = ("ttft", "queue-time", "input-work-seconds", "utilization", "num-requests-queued")
MAX_SAMPLE_COUNT = 64
VIRTUAL_NODES = Limit("policy.virtual_nodes", pieces=10_000)
"""Points per cluster on an affinity ring, each of which is hashed and kept."""
_MESSAGE = 500
"""Characters of an error text; the words of the document stand in it."""
_COMMON = frozenset(
    ("algorithm", "require_cache_affinity_key", "require_input_tokens", "max_input_work_seconds", "request_algorithms")
)
_WIDENING = frozenset(
    (
        "max_queue_time_floor_ms",
        "max_queue_time_ceil_ms",
        "ttft_bucket_size_ms",
        "next_bucket_unlock_factor",
        "n",
        "max_queued",
        "ignore_queue_time",
        "ignore_input_processing_time",
    )
)
_RING = frozenset(("cache_affinity_virtual_nodes", "cache_affinity_backend_selection_count"))
_FIELDS: Mapping[str, frozenset[str]] = {
    "power-of-n": frozenset(("sample_count", "comparator")),
    "wait-and-widen": _WIDENING | _RING | {"comparator", "seed"},
    "round-robin": frozenset(),
    "random": frozenset(),
    "pulsar": frozenset(("seed", "consider_kv_free_tokens")),
    "pulsar-wait-and-widen": _WIDENING | _RING | {"comparator", "seed", "consider_kv_free_tokens"},
}
_UNSIGNED = frozenset(
    (
        "sample_count",
        "max_queue_time_floor_ms",
        "max_queue_time_ceil_ms",
        "ttft_bucket_size_ms",
        "n",
        "max_queued",
        "cache_affinity_virtual_nodes",
        "cache_affinity_backend_selection_count",
    )
)
_NUMBERS = frozenset(("max_input_work_seconds", "next_bucket_unlock_factor"))
_BOOLEANS = frozenset(
    (
        "require_cache_affinity_key",
        "require_input_tokens",
        "consider_kv_free_tokens",
        "ignore_queue_time",
        "ignore_input_processing_time",
    )
)
_NOT_NULL = frozenset(("sample_count", "comparator", "request_algorithms", "algorithm"))


class ConfigError(ValueError):
    """The load-balancer configuration cannot be used. `stage` is `parse` or `build`; the message says where and why."""

    def __init__(self, message: str, stage: str = "parse") -> None:
        super().__init__(message if len(message) <= _MESSAGE else f"{message[:_MESSAGE]}...")
        self.stage = stage


class Definition:
    """Settings of one algorithm; compared by identity, which is what keys an algorithm's memory of a target."""

    __slots__ = ("algorithm", "built", "settings")

    built: Algorithm
    """The algorithm; a selector builds it when it takes the definition over, and nobody asks before."""

    def __init__(self, algorithm: str, settings: Mapping[str, object] | None = None) -> None:
        self.algorithm = algorithm
        """Canonical name."""
        self.settings = dict(settings or {})

    @property
    def require_cache_affinity_key(self) -> bool:
        """Requests without an affinity key are refused."""
        return bool(self.settings.get("require_cache_affinity_key"))

    @property
    def max_input_work_seconds(self) -> float | None:
        """Admission limit."""
        limit = self.settings.get("max_input_work_seconds")
        return float(limit) if isinstance(limit, int | float) else None

    @property
    def consider_kv_free_tokens(self) -> bool:
        """The KV check applies."""
        return bool(self.settings.get("consider_kv_free_tokens"))

    @property
    def comparator(self) -> str | None:
        """The comparator, for algorithms that have one."""
        if self.algorithm not in ("power-of-n", "wait-and-widen"):
            return None
        return str(self.settings.get("comparator", "ttft"))


def parse_name(value: object, plugins: frozenset[str]) -> str:
    """A canonical algorithm name. Raises `ConfigError`."""
    if isinstance(value, str):
        found = from_file(value, plugins)
        if found is not None:
            return found
        expected = ", ".join(f"`{name}`" for name in [*accepted(), *sorted(plugins)])
        raise ConfigError(f"unknown variant `{value}`, expected one of {expected}")
    raise ConfigError(f"invalid type: {type_name(value)}, expected an algorithm name")


def parse_definition(value: object, plugins: frozenset[str]) -> Definition:
    """A definition from a name or a detailed object (its `request_algorithms` are not part of it). Raises `ConfigError`."""
    if isinstance(value, str):
        return Definition(parse_name(value, plugins))
    if not isinstance(value, JsonObject):
        raise ConfigError("load-balancer model config must be an algorithm name or detailed config object")
    fields = value.last()
    if "algorithm" not in fields:
        raise ConfigError("missing field `algorithm`")
    algorithm = parse_name(fields["algorithm"], plugins)
    if algorithm not in plugins:
        unsupported = sorted(fields.keys() - _COMMON - _FIELDS[algorithm], key=lambda name: name.encode())
        if unsupported:
            raise ConfigError(f"{algorithm} config does not support field(s): {', '.join(unsupported)}")
    settings = {
        name: _checked(name, field)
        for name, field in fields.items()
        if name not in ("algorithm", "request_algorithms") and not (field is None and name not in _NOT_NULL)
    }
    if "sample_count" in settings and algorithm == "power-of-n":
        _check_sample_count(settings["sample_count"], "parse")
    return Definition(algorithm, settings)


def build(definition: Definition, random: Random, plugins: Mapping[str, MakeAlgorithm]) -> Algorithm:
    """The algorithm object of a definition. Raises `ConfigError` (stage `build`)."""
    name, settings = definition.algorithm, definition.settings
    seed = settings.get("seed")
    seed = seed if isinstance(seed, str) else None
    if seed is not None and name not in plugins and "seed" not in _FIELDS[name]:
        raise ConfigError(f"seed is not supported for {name}", "build")
    kv = definition.consider_kv_free_tokens
    if kv and name not in ("pulsar", "pulsar-wait-and-widen") and name not in plugins:
        raise ConfigError("consider_kv_free_tokens is supported only for pulsar and pulsar-wait-and-widen", "build")
    if name == "power-of-n":
        count = settings.get("sample_count", 2)
        _check_sample_count(count, "build")
        return PowerOfN(int(str(count)), comparators()[definition.comparator or "ttft"], random)
    if name == "wait-and-widen":
        return WaitAndWiden(
            _widening(settings),
            comparators()[definition.comparator or "ttft"],
            random,
            seed=seed,
            virtual_nodes=_integer(settings, "cache_affinity_virtual_nodes", 150),
            affinity_count=_integer(settings, "cache_affinity_backend_selection_count", 0),
        )
    if name == "round-robin":
        return RoundRobin()
    if name == "random":
        return RandomChoice(random)
    if name == "pulsar":
        return Pulsar(seed=seed, consider_kv_free_tokens=kv)
    if name == "pulsar-wait-and-widen":
        if "comparator" in settings:
            raise ConfigError("comparator is not supported for pulsar-wait-and-widen", "build")
        return PulsarWaitAndWiden(_widening(settings), random, seed=seed, consider_kv_free_tokens=kv)
    try:
        return plugins[name](dict(settings), random)
    except Exception as error:
        raise ConfigError(f"{name}: {error}", "build") from error


def type_name(value: object) -> str:
    """A JSON type as an error message names it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return f"boolean `{str(value).lower()}`"
    if isinstance(value, int):
        return f"integer `{value}`"
    if isinstance(value, float):
        return f"floating point `{value}`"
    if isinstance(value, str):
        return f'string "{value}"'
    return "map" if isinstance(value, JsonObject) else "sequence"


def _checked(name: str, value: object) -> object:
    """`value` if the field `name` may have it. Raises `ConfigError`."""
    if name in _UNSIGNED:
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MAX_U64:
            raise _wrong_type(name, value, "an unsigned integer")
        if name == "cache_affinity_virtual_nodes" and value > (VIRTUAL_NODES.pieces or 0):
            raise ConfigError(f"cache_affinity_virtual_nodes must be at most {VIRTUAL_NODES.pieces}, got {value}")
    elif name in _NUMBERS:
        _check_number(name, value)
    elif name in _BOOLEANS and not isinstance(value, bool):
        raise _wrong_type(name, value, "a boolean")
    elif name in ("seed", "comparator") and not isinstance(value, str):
        raise _wrong_type(name, value, "a string")
    elif name == "comparator" and value not in COMPARATORS:
        expected = ", ".join(f"`{one}`" for one in COMPARATORS)
        raise ConfigError(f"unknown variant `{value}`, expected one of {expected}")
    return value


def _check_number(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _wrong_type(name, value, "a number")
    try:
        float(value)
    except OverflowError:
        raise ConfigError(f"number out of range for `{name}`") from None


def _wrong_type(name: str, value: object, expected: str) -> ConfigError:
    return ConfigError(f"invalid type: {type_name(value)}, expected {expected} for `{name}`")


def _check_sample_count(count: object, stage: str) -> None:
    if not isinstance(count, int) or not 1 <= count <= MAX_SAMPLE_COUNT:
        raise ConfigError(f"power-of-n sample_count must be between 1 and {MAX_SAMPLE_COUNT}, got {count}", stage)


def _integer(settings: Mapping[str, object], name: str, default: int) -> int:
    value = settings.get(name, default)
    return value if isinstance(value, int) else default


def _widening(settings: Mapping[str, object]) -> WideningSettings:
    factor = settings.get("next_bucket_unlock_factor", 0.25)
    floor, ceil = settings.get("max_queue_time_floor_ms"), settings.get("max_queue_time_ceil_ms")
    return WideningSettings(
        max_queue_time_floor_ms=floor if isinstance(floor, int) else None,
        max_queue_time_ceil_ms=ceil if isinstance(ceil, int) else None,
        ttft_bucket_size_ms=_integer(settings, "ttft_bucket_size_ms", 20),
        next_bucket_unlock_factor=float(factor) if isinstance(factor, int | float) else 0.25,
        n=_integer(settings, "n", 2),
        max_queued=_integer(settings, "max_queued", 0),
        ignore_queue_time=bool(settings.get("ignore_queue_time")),
        ignore_input_processing_time=bool(settings.get("ignore_input_processing_time")),
    )
