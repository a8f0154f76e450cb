"""One configured algorithm: its name and settings, checked field by field, and the algorithm object built from them."""

from collections.abc import Mapping
from random import Random

from router.balancing.algorithm import Algorithm
from router.balancing.catalog import Catalog
from router.balancing.config_error import ConfigError
from router.balancing.fields import FieldKind, Fields, type_name
from router.balancing.json_document import JsonObject
from router.balancing.registration import Registration


class Definition:
    """Settings of one algorithm. Compared by identity: it is the key of the algorithm's state for a target."""

    __slots__ = ("algorithm", "built", "max_input_work_seconds", "require_cache_affinity_key", "settings")

    built: Algorithm
    """The algorithm; set by `Selector` before the definition is used."""

    def __init__(self, algorithm: str, settings: Mapping[str, object] | None = None) -> None:
        self.algorithm = algorithm
        """Canonical name."""
        self.settings = dict(settings or {})
        """The settings as configured; settings that are not configured are absent."""
        self.require_cache_affinity_key = bool(self.settings.get("require_cache_affinity_key"))
        """Whether requests without an affinity key are refused."""
        limit = self.settings.get("max_input_work_seconds")
        self.max_input_work_seconds = float(limit) if isinstance(limit, int | float) else None
        """Limit of input-work admission in seconds; None = no limit."""


def parse_name(value: object, catalog: Catalog) -> str:
    """The canonical algorithm name in a document. Raises `ConfigError`."""
    if isinstance(value, str):
        found = catalog.from_file(value)
        if found is not None:
            return found
        expected = ", ".join(f"`{name}`" for name in catalog.spellings())
        raise ConfigError(f"unknown variant `{value}`, expected one of {expected}")
    raise ConfigError(f"invalid type: {type_name(value)}, expected an algorithm name")


def parse_definition(value: object, catalog: Catalog) -> Definition:
    """A definition from a name or a detailed object (its `request_algorithms` are not part of it). Raises `ConfigError`."""
    if isinstance(value, str):
        return Definition(parse_name(value, catalog))
    if not isinstance(value, JsonObject):
        raise ConfigError("load-balancer model config must be an algorithm name or detailed config object")
    given = value.last()
    if "algorithm" not in given:
        raise ConfigError("missing field `algorithm`")
    algorithm = parse_name(given.pop("algorithm"), catalog)
    given.pop("request_algorithms", None)
    return checked_definition(algorithm, given, catalog)


def checked_definition(algorithm: str, given: Mapping[str, object], catalog: Catalog) -> Definition:
    """A definition from the canonical name of an algorithm and its settings by document key; null counts as absent.

    The one place where keys become settings that have been checked by name, type and range. Raises `ConfigError`.
    """
    fields = Fields(given)
    _read_shared(fields)
    registered = catalog.registration(algorithm)
    if registered is not None:
        unsupported = sorted(given.keys() - fields.kinds.keys() - registered.fields, key=lambda name: name.encode())
        if unsupported:
            raise ConfigError(f"{algorithm} config does not support field(s): {', '.join(unsupported)}")
        registered.check(fields)
    fields.check()
    return Definition(algorithm, {name: field for name, field in given.items() if field is not None})


def build(definition: Definition, random: Random, catalog: Catalog) -> Algorithm:
    """The algorithm object of a definition. Raises `ConfigError` (stage `build`)."""
    name, settings = definition.algorithm, definition.settings
    make = catalog.maker(name)
    if make is None:
        raise ConfigError(f"{name}: no such algorithm", "build")
    if isinstance(make, Registration):
        _check_support(name, settings, make.fields, catalog)
    try:
        return make(dict(settings), random)
    except ConfigError as error:
        error.stage = "build"
        raise
    except Exception as cause:
        raise ConfigError(f"{name}: {cause}", "build") from cause


def shared_kinds() -> Mapping[str, FieldKind]:
    """The settings that every algorithm has by name, and how they are read."""
    nothing = Fields({})
    _read_shared(nothing)
    return nothing.kinds


def _read_shared(fields: Fields) -> None:
    """Read the settings that every algorithm has; `Definition` holds them."""
    fields.boolean("require_cache_affinity_key")
    fields.boolean("require_input_tokens")  # no effect: the proxy requires them for every request
    fields.number("max_input_work_seconds", None)


def _check_support(name: str, settings: Mapping[str, object], fields: frozenset[str], catalog: Catalog) -> None:
    """Refuse settings that would have no effect in a definition made in code. Raises `ConfigError` (stage `build`)."""
    if isinstance(settings.get("seed"), str) and "seed" not in fields:
        raise ConfigError(f"seed is not supported for {name}", "build")
    if settings.get("consider_kv_free_tokens") and "consider_kv_free_tokens" not in fields:
        supporting = " and ".join(catalog.names_with("consider_kv_free_tokens"))
        raise ConfigError(f"consider_kv_free_tokens is supported only for {supporting}", "build")
