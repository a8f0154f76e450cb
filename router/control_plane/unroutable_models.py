"""Log lines about active models of a worker that are not routable, once when each becomes so."""

from collections.abc import Mapping

import structlog

from router.registry.stats import ModelUpdate

_log = structlog.get_logger()


class UnroutableModels:
    """Which active models of one registration lack what is needed to route to them."""

    def __init__(self) -> None:
        self._lacking: frozenset[str] = frozenset()
        self._without_rtt: bool | None = None

    def report_changed(self) -> None:
        """The next `log` gets other models than the last one."""
        self._without_rtt = None

    def log(self, models: Mapping[str, ModelUpdate], inference_server_id: str | None, *, without_rtt: bool) -> None:
        """Log one line per active model when it becomes unroutable: without stats, or without a round trip.

        Does nothing if neither the models nor `without_rtt` have changed.
        """
        if without_rtt is self._without_rtt:
            return
        self._without_rtt = without_rtt
        active = {model: update for model, update in models.items() if update.active}
        lacking = frozenset(active if without_rtt else (m for m, update in active.items() if update.stats is None))
        for model in sorted(lacking - self._lacking):
            if active[model].stats is None:
                text = "missing model stats in registration; setting model status to inactive"
            else:
                text = "active model registration missing connection RTT; skipping routing update"
            _log.warning(text, inference_server_id=inference_server_id, model_id=model)
        self._lacking = lacking
