"""Decisions by routing expressions: the definition each one makes, and which are kept for the next request.

Kept are the last two expressions of a target (routing key, model), so that a client, or two of them, may use two in turn. The state
of their algorithms (counters, rings, rankings) ends with them. Rules: docs/balancing.md, "Expressions".
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from enum import StrEnum
from random import Random
from typing import Final

from router.balancing.catalog import Catalog
from router.balancing.config_error import ConfigError
from router.balancing.definition import Definition, build
from router.balancing.expression import parse_expression
from router.balancing.expression_settings import overlaid
from router.balancing.method_error import MethodError, MethodErrorCode, quoted
from tunnel_protocol.limit import Limit

EXPRESSION_TARGETS: Final = Limit("policy.expression_targets", bytes=128 << 20, pieces=16_384)
"""Targets whose expressions are kept, and bytes of their names, expressions and settings together."""

IDLE_S: Final = 900.0
"""Seconds without a request after which the expressions of a target are no longer kept."""

_MAX_BYTES = EXPRESSION_TARGETS.bytes or 0
_MAX_TARGETS = EXPRESSION_TARGETS.pieces or 0

DEFINITION_BYTES: Final = 4_096
"""What the settings and the algorithm of one expression count as: more than they take with all parameters, as a test measures."""

_Key = tuple[str | None, str]


class ExpressionDefinition(Definition):
    """The definition that an expression makes for one target."""

    __slots__ = ("expression", "states")

    def __init__(self, algorithm: str, settings: Mapping[str, object], expression: bytes) -> None:
        super().__init__(algorithm, settings)
        self.expression = expression
        """The value of the header, byte for byte."""
        self.states: dict[object, object] | None = None
        """The `balancer_state` that holds the state of this definition; None before the first decision."""


class ExpressionUse(StrEnum):
    """How a request found its expression."""

    HIT = "hit"
    """It is one of the last two of the target."""

    BUILD = "build"
    """It is the first of the target."""

    REBUILD = "rebuild"
    """It is new to a target that had another."""


class _Kept:
    """The last two expressions of one target."""

    __slots__ = ("current", "previous", "used_at")

    def __init__(self, current: ExpressionDefinition, used_at: float) -> None:
        self.current = current
        self.previous: ExpressionDefinition | None = None
        self.used_at = used_at


class Expressions:
    """Makes definitions from expressions, and keeps them."""

    def __init__(self, catalog: Catalog, random: Random, configured: Callable[[str, str], Definition | None]) -> None:
        """`configured`: the definition of an algorithm that a model may use, None if it may not."""
        self._catalog = catalog
        self._random = random
        self._configured = configured
        self._kept: OrderedDict[_Key, _Kept] = OrderedDict()
        self.held_bytes = 0
        """What is kept, as the limit counts it."""

    def __len__(self) -> int:
        """Number of targets with expressions."""
        return len(self._kept)

    def resolve(self, value: bytes, routing_key: str | None, model: str) -> ExpressionDefinition:
        """The kept definition of an expression, else a new one, which is not kept yet. Raises `MethodError`."""
        kept = self._kept.get((routing_key, model))
        if kept is not None:
            if kept.current.expression == value:
                return kept.current
            if kept.previous is not None and kept.previous.expression == value:
                return kept.previous
        return self._define(value, model)

    def keep(self, definition: ExpressionDefinition, routing_key: str | None, model: str, now: float) -> ExpressionUse:
        """Keep the definition that `resolve` has returned for this target; `now` is in monotonic seconds."""
        self.expire(now)
        key = (routing_key, model)
        kept = self._kept.get(key)
        if kept is None:
            self._kept[key] = _Kept(definition, now)
            self.held_bytes += _key_bytes(key) + _definition_bytes(definition)
            use = ExpressionUse.BUILD
        else:
            use = self._use(kept, definition)
            kept.used_at = now
            self._kept.move_to_end(key)
        while len(self._kept) > _MAX_TARGETS or self.held_bytes > _MAX_BYTES:
            self._drop_oldest()
        return use

    def expire(self, now: float) -> None:
        """Drop what no request has used for `IDLE_S`."""
        while self._kept:
            oldest = next(iter(self._kept.values()))
            if now - oldest.used_at < IDLE_S:
                return
            self._drop_oldest()

    def clear(self) -> None:
        """Drop everything: the configuration that the expressions were laid over is no longer active."""
        while self._kept:
            self._drop_oldest()

    def of_target(self, routing_key: str | None, model: str) -> tuple[Definition, ...]:
        """The kept definitions of a target."""
        kept = self._kept.get((routing_key, model))
        if kept is None:
            return ()
        return (kept.current,) if kept.previous is None else (kept.current, kept.previous)

    def _define(self, value: bytes, model: str) -> ExpressionDefinition:
        expression = parse_expression(value)
        algorithm = self._catalog.from_header(expression.method)
        if algorithm is None:
            raise unknown_method(expression.method, expression.position)
        base = self._configured(model, algorithm)
        if base is None:
            raise unavailable_method(algorithm, expression.position)
        definition = ExpressionDefinition(algorithm, overlaid(base, expression, self._catalog), value)
        try:
            definition.built = build(definition, self._random, self._catalog)
        except ConfigError as error:  # of an algorithm that checks its settings only when it is made
            raise MethodError(MethodErrorCode.INVALID_VALUE, str(error)) from error
        return definition

    def _use(self, kept: _Kept, definition: ExpressionDefinition) -> ExpressionUse:
        if definition is kept.current:
            return ExpressionUse.HIT
        dropped = kept.previous
        kept.previous = kept.current
        kept.current = definition
        if definition is dropped:
            return ExpressionUse.HIT
        self.held_bytes += _definition_bytes(definition)
        if dropped is not None:
            self._drop(dropped)
        return ExpressionUse.REBUILD

    def _drop_oldest(self) -> None:
        key, kept = self._kept.popitem(last=False)
        self.held_bytes -= _key_bytes(key)
        self._drop(kept.current)
        if kept.previous is not None:
            self._drop(kept.previous)

    def _drop(self, definition: ExpressionDefinition) -> None:
        self.held_bytes -= _definition_bytes(definition)
        states = definition.states
        if states is not None:
            states.pop(definition, None)


def unknown_method(name: str, position: int | None = None) -> MethodError:
    """The error for a name that is no algorithm's."""
    return MethodError(MethodErrorCode.UNKNOWN_METHOD, f"unknown routing method {quoted(name)}", position)


def unavailable_method(algorithm: str, position: int | None = None) -> MethodError:
    """The error for an algorithm, by its canonical name, that the configuration does not offer for a model."""
    message = f"routing method {algorithm} is not configured for this model"
    return MethodError(MethodErrorCode.UNAVAILABLE, message, position)


def _key_bytes(key: _Key) -> int:
    return len(key[0] or "") + len(key[1])


def _definition_bytes(definition: ExpressionDefinition) -> int:
    return DEFINITION_BYTES + len(definition.expression)
