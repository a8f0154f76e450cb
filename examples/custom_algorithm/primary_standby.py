"""`primary-standby`: clusters in a fixed order; the next one is used while those before it are full or have failed.

Settings: `order`, a list of cluster ids (required); `max_running`, how many running requests make a cluster full (default:
no limit). Clusters that are not in the list come after it, by their ids. If all are full, the first that has not failed is taken.
"""

from collections.abc import Collection, Sequence
from random import Random

from router.balancing import Choice, RoutingRequest
from router.balancing.candidate import Candidate

_FIELDS = {"order", "max_running"}


class PrimaryStandby:
    """The algorithm with the settings of one definition; also its own balancer, for there is nothing to remember per target."""

    def __init__(self, settings: dict[str, object], source: Random) -> None:  # noqa: ARG002 - nothing is left to chance
        """Raises `ValueError`, which stops the start (or refuses the reload) with its message, for settings that are wrong."""
        if unknown := set(settings) - _FIELDS:
            raise ValueError(f"unknown setting {min(unknown)!r}, expected one of {sorted(_FIELDS)}")
        order, max_running = settings.get("order"), settings.get("max_running")
        if not isinstance(order, list) or not order or not all(isinstance(name, str) for name in order):
            raise ValueError("order must be a list of cluster ids")
        if max_running is not None and (not isinstance(max_running, int) or max_running < 1):
            raise ValueError("max_running must be a number of requests, at least 1")
        self._place = {name: place for place, name in enumerate(order)}
        self._max_running = max_running

    def balancer(self, routing_key: str | None, model: str) -> "PrimaryStandby":  # noqa: ARG002 - the same for all targets
        """What decides for one target."""
        return self

    def choose(
        self,
        request: RoutingRequest,  # noqa: ARG002 - all requests alike
        candidates: Sequence[Candidate],
        excluded: Collection[str],
        elapsed_ms: float,  # noqa: ARG002 - however long it has waited
    ) -> Choice | None:
        """The first cluster with capacity, else the first; None if all have failed this request."""
        ranking = sorted(
            candidates, key=lambda one: (self._place.get(one.cluster_id, len(self._place)), one.cluster_id)
        )
        left = [(rank, one) for rank, one in enumerate(ranking, start=1) if one.cluster_id not in excluded]
        if not left:
            return None
        rank, chosen = next(((rank, one) for rank, one in left if not self._full(one)), left[0])
        return Choice(chosen, rank_depth=rank)

    def _full(self, candidate: Candidate) -> bool:
        return self._max_running is not None and candidate.num_running_queries >= self._max_running
