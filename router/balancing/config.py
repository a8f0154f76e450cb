"""The load-balancer configuration: a JSON document, validated as a whole, or the built-in default if there is none.

Reference of the document: docs/balancing.md, "Configuration".
"""

from collections.abc import Collection, Mapping
from typing import Final

from router.balancing.algorithm import MakeAlgorithm
from router.balancing.catalog import Catalog, builtin_algorithms
from router.balancing.config_error import ConfigError
from router.balancing.definition import Definition, parse_definition, parse_name
from router.balancing.fields import type_name
from router.balancing.json_document import JsonError, JsonObject, parse
from router.balancing.settings import CURRENT, BalancingSettings
from tunnel_protocol.limit import Limit

DEFINITIONS: Final = Limit("policy.definitions", pieces=10_000)
"""Maximum number of definitions of a policy: the default, those of models, and those of the method header."""

_KEYS: Final = ("default", "request_algorithms", "models")


class ModelPolicy:
    """The policy of one model: its own definition, and those that the method header may select instead."""

    __slots__ = ("configured", "overrides")

    def __init__(self, configured: Definition, overrides: Mapping[str, Definition]) -> None:
        self.configured = configured
        self.overrides = dict(overrides)


class BalancingConfig:
    """All definitions. Without arguments: `power-of-n` for all models, and every algorithm selectable per request."""

    def __init__(
        self,
        default: Definition | None = None,
        overrides: Mapping[str, Definition] | None = None,
        models: Mapping[str, ModelPolicy] | None = None,
    ) -> None:
        if default is None and overrides is None:
            overrides = {name: Definition(name) for name in builtin_algorithms()}
        self.default = default or Definition("power-of-n")
        self.overrides = dict(overrides or {})
        """Definitions that the method header may select for any model."""
        self.models = dict(models or {})

    @property
    def default_lb(self) -> str:
        """Canonical name of the default algorithm."""
        return self.default.algorithm

    @property
    def model_overrides(self) -> Collection[str]:
        """Models that have their own entry."""
        return self.models.keys()

    def definitions(self) -> list[tuple[str | None, Definition]]:
        """Every definition with its key in `request_algorithms`, or None if it is not in it."""
        found: list[tuple[str | None, Definition]] = [(None, self.default), *self.overrides.items()]
        for policy in self.models.values():
            found.append((None, policy.configured))
            found.extend(policy.overrides.items())
        return found


def load_config(
    content: bytes, plugins: Mapping[str, MakeAlgorithm] | None = None, settings: BalancingSettings = CURRENT
) -> BalancingConfig:
    """Parse a document that may name built-in algorithms and `plugins`. Raises `ConfigError`."""
    catalog = Catalog(plugins, settings)
    try:
        document = parse(content)
    except JsonError as error:
        raise ConfigError(str(error)) from None
    if not isinstance(document, JsonObject):
        raise ConfigError(f"invalid type: {type_name(document)}, expected an object")
    seen: dict[str, object] = {}
    for key, value in document:
        if key not in _KEYS:
            expected = ", ".join(f"`{name}`" for name in _KEYS)
            raise ConfigError(f"unknown field `{key}`, expected one of {expected}")
        if key in seen:
            raise ConfigError(f"duplicate field `{key}`")
        if value is None:
            raise ConfigError(f"invalid type: null for `{key}`")
        seen[key] = value
    default = Definition(parse_name(seen.get("default", "power-of-n"), catalog))
    overrides = _overrides(seen.get("request_algorithms", JsonObject()), catalog, sort=False)
    models = _object(seen.get("models", JsonObject()), "models").last()
    policies = {
        model: ModelPolicy(parse_definition(entry, catalog), _overrides_of(entry, catalog))
        for model, entry in models.items()
    }
    config = BalancingConfig(default, overrides, policies)
    count = len(config.definitions())
    if count > (DEFINITIONS.pieces or 0):
        raise ConfigError(f"{count} definitions; at most {DEFINITIONS.pieces} are supported")
    return config


def _object(value: object, name: str) -> JsonObject:
    if not isinstance(value, JsonObject):
        raise ConfigError(f"invalid type: {type_name(value)}, expected an object for `{name}`")
    return value


def _overrides_of(entry: object, catalog: Catalog) -> dict[str, Definition]:
    if not isinstance(entry, JsonObject):
        return {}
    return _overrides(entry.last().get("request_algorithms", JsonObject()), catalog, sort=True)


def _overrides(value: object, catalog: Catalog, *, sort: bool) -> dict[str, Definition]:
    pairs = list(_object(value, "request_algorithms"))
    if sort:
        # Of two spellings of one algorithm, the bytewise greater one is used in a model entry, the later one elsewhere.
        pairs = sorted(dict(pairs).items(), key=lambda pair: pair[0].encode())
    found: dict[str, Definition] = {}
    for key, entry in pairs:
        if isinstance(entry, JsonObject):
            _overrides_of(entry, catalog)  # the result is not used, but it must be valid
        found[parse_name(key, catalog)] = parse_definition(entry, catalog)
    return found
