"""The settings of a decision by a routing expression: its parameters, laid over the configured settings of the algorithm.

A parameter has the name of a setting in the load-balancer document, and its value the type as which the algorithm reads that
setting, so that both are checked by the same code. Table of the parameters: docs/balancing.md, "Expressions".
"""

import math
import re
from collections.abc import Mapping
from typing import Final

from router.balancing.catalog import Catalog
from router.balancing.config_error import ConfigError
from router.balancing.definition import Definition, checked_definition, shared_kinds
from router.balancing.expression import Expression, Parameter, ValueKind
from router.balancing.fields import FieldKind
from router.balancing.method_error import MethodError, MethodErrorCode, quoted

MOST_VIRTUAL_NODES: Final = 1024
"""The largest `cache_affinity_virtual_nodes` of an expression; a document may have more."""

_FLOOR, _CEILING = "max_queue_time_floor_ms", "max_queue_time_ceil_ms"
_VIRTUAL_NODES: Final = "cache_affinity_virtual_nodes"
_WORK_LIMIT: Final = "max_input_work_seconds"

_IN_DOCUMENTS_ONLY: Final = frozenset(("rendezvous_weight",))
"""Settings that are not parameters of any algorithm."""

_WITHOUT_EFFECT: Final = {"pulsar-wait-and-widen": frozenset(("comparator", _VIRTUAL_NODES))}
"""Settings that an algorithm reads only to refuse or to ignore them."""

_OFF_AT_ZERO: Final = frozenset(("n", "ttft_bucket_size_ms", "cache_affinity_backend_selection_count"))

_DIGITS: Final = re.compile(r"[0-9]+\Z").match
_PLAIN_NUMBER: Final = re.compile(r"[+-]?[0-9]+(?:\.[0-9]+)?\Z").match
_TEXTS: Final = (ValueKind.TOKEN, ValueKind.STRING)


def overlaid(base: Definition, expression: Expression, catalog: Catalog) -> Mapping[str, object]:
    """The settings of `base` with the parameters of `expression` in their place, checked as a document is.

    Raises `MethodError`: `unknown_parameter`, `not_applicable`, `invalid_value`, `inert_value` or `inert_combination`.
    """
    algorithm = base.algorithm
    kinds = _applicable(algorithm, catalog)
    given: dict[str, object] = {}
    for parameter in expression.parameters:
        kind = kinds.get(parameter.name)
        if kind is None:
            raise _not_applicable(parameter, algorithm, catalog)
        given[parameter.name] = _checked(parameter, kind, builtin=catalog.is_builtin(algorithm))
    settings = {**base.settings, **given}
    try:
        checked = checked_definition(algorithm, settings, catalog)
    except ConfigError as error:
        for parameter in expression.parameters:
            _check_alone(parameter, algorithm, given[parameter.name], catalog)
        raise MethodError(MethodErrorCode.INVALID_VALUE, str(error)) from error
    if catalog.is_builtin(algorithm):
        _check_combination(expression, checked.settings)
    return checked.settings


def _applicable(algorithm: str, catalog: Catalog) -> Mapping[str, FieldKind]:
    """The parameters of an algorithm by name. Those of one that declares no settings are those that every algorithm has."""
    registered = catalog.registration(algorithm)
    own = {} if registered is None else registered.kinds
    without = _IN_DOCUMENTS_ONLY | _WITHOUT_EFFECT.get(algorithm, frozenset())
    return {name: kind for name, kind in {**own, **shared_kinds()}.items() if name not in without}


def _not_applicable(parameter: Parameter, algorithm: str, catalog: Catalog) -> MethodError:
    named = f"parameter {quoted(parameter.name)}"
    if parameter.name in catalog.declared_settings() - _IN_DOCUMENTS_ONLY:
        message = f"{named} does not apply to algorithm {algorithm}"
        return MethodError(MethodErrorCode.NOT_APPLICABLE, message, parameter.position)
    message = f"unknown {named} for algorithm {algorithm}"
    return MethodError(MethodErrorCode.UNKNOWN_PARAMETER, message, parameter.position)


def _checked(parameter: Parameter, kind: FieldKind, *, builtin: bool) -> object:
    """The value as a document would have it. Raises `MethodError`."""
    name = parameter.name
    value = _value(parameter, kind)
    if value is None:
        raise _invalid(parameter, f"must be {_expected(kind)}")
    if (builtin and name in _OFF_AT_ZERO and value == 0) or (name == _WORK_LIMIT and value == 0):
        message = f"parameter {quoted(name)} has no effect with the value 0"
        raise MethodError(MethodErrorCode.INERT_VALUE, message, parameter.value_position)
    if name == _WORK_LIMIT and isinstance(value, float) and value < 0:
        raise _invalid(parameter, "must be greater than 0")
    if builtin and name == _VIRTUAL_NODES and isinstance(value, int) and not 1 <= value <= MOST_VIRTUAL_NODES:
        raise _invalid(parameter, f"must be between 1 and {MOST_VIRTUAL_NODES}")
    return value


def _value(parameter: Parameter, kind: FieldKind) -> object | None:
    """The value with the type of the setting; None if it cannot have it."""
    written, text = parameter.kind, parameter.text
    if kind is FieldKind.BOOLEAN:
        return {"true": True, "false": False}.get(text) if written in _TEXTS else None
    if kind is FieldKind.UNSIGNED:
        if written is ValueKind.INTEGER or (written is ValueKind.STRING and _DIGITS(text)):
            number = int(text)
            return number if number >= 0 else None
        return None
    if kind is FieldKind.NUMBER:
        if written is ValueKind.TOKEN or not _PLAIN_NUMBER(text):
            return None
        found = float(text)
        return found if math.isfinite(found) else None
    return text if written in _TEXTS else None


def _expected(kind: FieldKind) -> str:
    if kind is FieldKind.BOOLEAN:
        return "true or false"
    return "a string or a token" if kind in (FieldKind.TEXT, FieldKind.CHOICE) else kind.value


def _check_alone(parameter: Parameter, algorithm: str, value: object, catalog: Catalog) -> None:
    """Raise the `MethodError` of this parameter, if it is invalid without the others too."""
    try:
        checked_definition(algorithm, {parameter.name: value}, catalog)
    except ConfigError as error:
        message = f"parameter {quoted(parameter.name)} is not valid: {error}"
        raise MethodError(MethodErrorCode.INVALID_VALUE, message, parameter.value_position) from error


def _check_combination(expression: Expression, settings: Mapping[str, object]) -> None:
    """The queue limit needs its floor and its ceiling. A document may have only one of them, an expression may not cause it."""
    if (_FLOOR in settings) == (_CEILING in settings):
        return
    missing = _FLOOR if _CEILING in settings else _CEILING
    for parameter in expression.parameters:
        if parameter.name in (_FLOOR, _CEILING):
            message = f"parameter {quoted(parameter.name)} has no effect without {missing}"
            raise MethodError(MethodErrorCode.INERT_COMBINATION, message, parameter.position)


def _invalid(parameter: Parameter, rule: str) -> MethodError:
    message = f"parameter {quoted(parameter.name)} {rule}, got {quoted(parameter.text)}"
    return MethodError(MethodErrorCode.INVALID_VALUE, message, parameter.value_position)
