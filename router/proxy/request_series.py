"""The series that a proxied request updates, found once per target and per worker instead of once per request.

A look-up costs as much as the rest of an update: it makes a tuple of all label values and takes its hash.
"""

from typing import Final

from router.telemetry.families import BoundCounter, BoundHistogram
from router.telemetry.metrics import Metrics
from tunnel_protocol.limit import Limit

FOUND_SERIES: Final = Limit("metrics.found_series", pieces=20_000)
"""Targets, workers and statuses of theirs whose series are kept at hand; beyond that all are found anew."""

_MOST: Final = FOUND_SERIES.pieces or 0


class ServerSeries:
    """The series of one worker for one target."""

    __slots__ = ("_answers", "_attempts", "_labels", "_metrics", "_owner", "duration")

    def __init__(self, owner: "RequestSeries", metrics: Metrics, labels: tuple[str, str, str]) -> None:
        """`labels` are routing key, model and worker id."""
        self._owner = owner
        self._metrics = metrics
        self._labels = labels
        self.duration = BoundHistogram(metrics.proxy_duration_seconds, labels)
        self._attempts: dict[int, BoundCounter] = {}
        self._answers: dict[int, BoundCounter] = {}

    def attempt_answered(self, status: int) -> None:
        """An attempt got a response head with this status."""
        found = self._attempts.get(status)
        if found is None:
            self._owner.count_one()
            counter = self._metrics.proxy_attempts_total
            found = self._attempts[status] = BoundCounter(counter, (*self._labels, f"upstream_{status}"))
        found.inc()

    def answered(self, status: int) -> None:
        """A client got this status from the worker."""
        found = self._answers.get(status)
        if found is None:
            self._owner.count_one()
            found = self._answers[status] = BoundCounter(self._metrics.requests_total, (*self._labels, str(status)))
        found.inc()


class TargetSeries:
    """The series of one target."""

    __slots__ = (
        "_labels",
        "_metrics",
        "_owner",
        "_selections",
        "_servers",
        "duration",
        "first_byte",
        "replay_bytes",
        "routing_duration",
    )

    def __init__(self, owner: "RequestSeries", metrics: Metrics, labels: tuple[str, str]) -> None:
        """`labels` are routing key and model."""
        self._owner = owner
        self._metrics = metrics
        self._labels = labels
        self.routing_duration = BoundHistogram(metrics.routing_duration_seconds, labels)
        self.replay_bytes = BoundHistogram(metrics.proxy_replay_buffer_bytes, labels[1:])
        self.first_byte = BoundHistogram(metrics.request_first_byte_seconds, labels)
        self.duration = BoundHistogram(metrics.request_duration_seconds, labels)
        self._selections: dict[str, BoundCounter] = {}
        self._servers: dict[str, ServerSeries] = {}

    def selected(self, algorithm: str, *, fallback: bool) -> None:
        """An algorithm chose a cluster, the one that it prefers or a `fallback`."""
        if fallback:
            self._metrics.routing_selections_total.inc((*self._labels, algorithm, "fallback"))
            return
        found = self._selections.get(algorithm)
        if found is None:
            counter = self._metrics.routing_selections_total
            found = self._selections[algorithm] = BoundCounter(counter, (*self._labels, algorithm, "primary"))
        found.inc()

    def of_server(self, server_id: str) -> ServerSeries:
        """The series of this worker."""
        found = self._servers.get(server_id)
        if found is None:
            self._owner.count_one()
            found = self._servers[server_id] = ServerSeries(self._owner, self._metrics, (*self._labels, server_id))
        return found


class RequestSeries:
    """The series of all targets that have been asked for and are known."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._targets: dict[tuple[str, str], TargetSeries] = {}
        self._count = 0

    def of_target(self, labels: tuple[str, str]) -> TargetSeries:
        """The series of the target with this routing key (or an empty text) and model; it must be a registered one."""
        found = self._targets.get(labels)
        if found is None:
            self.count_one()
            found = self._targets[labels] = TargetSeries(self, self._metrics, labels)
        return found

    def count_one(self) -> None:
        """One more target, worker or status is kept; at the limit all that are kept are let go, and found again when needed."""
        if self._count >= _MOST:
            self._targets = {}
            self._count = 0
        self._count += 1
