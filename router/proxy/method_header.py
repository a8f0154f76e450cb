"""The header `x-routing-method` of a request: the name of an algorithm, or an expression with parameters.

Source of the rules: docs/balancing.md, "Expressions"; of the answers: docs/proxy.md, "Validation".
"""

from collections.abc import Callable
from functools import partial
from typing import Final

import structlog

from router.balancing import Definition, MethodError, MethodErrorCode, Selector
from router.balancing.expressions import ExpressionDefinition, Expressions, ExpressionUse
from router.proxy.settings import ProxySettings
from router.telemetry.metrics import Metrics

_log = structlog.get_logger()

_NOT_TEXT: Final = "<invalid-utf8>"
_LOGGED: Final = 1024
"""Characters of a refused value in the log; a valid expression is not longer."""
_SWEEP_S: Final = 60.0
_EARLIER_REASONS: Final = {MethodErrorCode.UNKNOWN_METHOD: "unknown", MethodErrorCode.UNAVAILABLE: "unavailable"}

CallLater = Callable[[float, Callable[[], None]], object]
"""Calls a function after so many seconds."""


class MethodHeader:
    """Finds the definition that the header asks for; counts and logs expressions, and has idle ones dropped."""

    def __init__(
        self,
        selector: Selector,
        metrics: Metrics,
        settings: ProxySettings,
        clock: Callable[[], float],
        call_later: CallLater,
    ) -> None:
        self._selector = selector
        self._metrics = metrics
        self._answers_with_reason = settings.method_error_bodies
        self._clock = clock
        self._call_later = call_later
        self._sweeps = False
        self._expressions = selector.expressions
        if self._expressions is not None:
            metrics.routing_expression_cache_entries.track(self._expressions.__len__)
            for algorithm in selector.algorithms():
                for use in ExpressionUse:
                    metrics.routing_expressions_total.create((algorithm, use.value))

    def resolve(
        self, value: bytes, requested: str | None, routing_key: str | None, model: str, now: float
    ) -> Definition:
        """The definition for a value, which is `requested` as text, None if it is none. Raises `MethodError` after logging it."""
        try:
            expressions = self._expressions
            if expressions is not None and b";" in value:
                expressions.expire(now)
                return expressions.resolve(value, routing_key, model)
            if requested is None:
                blank = not value.strip(b" \t")
                return self._selector.resolve(model, "" if blank else _NOT_TEXT)
            return self._selector.resolve(model, requested)
        except MethodError as error:
            self._log(error, requested, routing_key, model)
            raise

    def accepted(self, definition: Definition, routing_key: str | None, model: str, now: float) -> None:
        """The request with this definition has passed all checks: an expression is kept and counted."""
        expressions = self._expressions
        if expressions is None or not isinstance(definition, ExpressionDefinition):
            return
        use = expressions.keep(definition, routing_key, model, now)
        self._metrics.routing_expressions_total.inc((definition.algorithm, use.value))
        if use is not ExpressionUse.HIT:
            _log.info(
                "routing expression configuration built",
                routing_key=routing_key,
                model_id=model,
                algorithm=definition.algorithm,
                outcome=use.value,
                expression=definition.expression.decode("ascii"),
            )
        if not self._sweeps:
            self._sweeps = True
            self._call_later(_SWEEP_S, partial(self._sweep, expressions))

    def _sweep(self, expressions: Expressions) -> None:
        """Drop idle expressions, and do so again as long as there are any."""
        expressions.expire(self._clock())
        self._sweeps = len(expressions) > 0
        if self._sweeps:
            self._call_later(_SWEEP_S, partial(self._sweep, expressions))

    def _log(self, error: MethodError, requested: str | None, routing_key: str | None, model: str) -> None:
        shown = _NOT_TEXT if requested is None else requested[:_LOGGED]
        if self._answers_with_reason:
            _log.warning(
                "invalid routing algorithm header",
                routing_key=routing_key,
                model_id=model,
                requested_algorithm=shown,
                rejection_reason=error.code.value,
                error=str(error),
            )
        else:
            _log.warning(
                "invalid routing algorithm header",
                routing_key=routing_key,
                model_id=model,
                requested_algorithm=shown,
                rejection_reason=_EARLIER_REASONS.get(error.code, error.code.value),
            )
