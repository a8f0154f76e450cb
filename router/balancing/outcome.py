"""What came of asking the policy once."""

from typing import Generic, NamedTuple, TypeVar

from router.balancing.candidate import Candidate

ClusterT = TypeVar("ClusterT")
"""The live cluster of a candidate, as whoever routes knows it; balancing hands it on and never looks inside."""
BackendT = TypeVar("BackendT")
"""One inference server of a cluster, likewise."""


class Choice(NamedTuple):
    """What an algorithm returns: a cluster, and how it came by it."""

    candidate: Candidate
    rank_depth: int = 1
    """1-based position in the algorithm's ranking; 1 for algorithms without one."""
    skipped_for_kv: bool = False
    """A better-ranked cluster was passed over for lack of free KV cache tokens."""


class Chosen(Generic[ClusterT, BackendT]):
    """A cluster and one of its backends."""

    # No named tuple: made for every request, and this is the cheaper one, compiled or not.
    __slots__ = ("backend", "candidate", "cluster", "expected_queue_ms", "rank_depth", "skipped_for_kv")

    def __init__(
        self,
        candidate: Candidate,
        cluster: ClusterT,
        backend: BackendT,
        rank_depth: int,
        skipped_for_kv: bool,
        expected_queue_ms: int | None,
    ) -> None:
        self.candidate = candidate
        """The statistics the decision was made by."""
        self.cluster = cluster
        """The cluster they are of."""
        self.backend = backend
        self.rank_depth = rank_depth
        self.skipped_for_kv = skipped_for_kv
        self.expected_queue_ms = expected_queue_ms
        """The queue estimate to tell the worker; None if there is none."""

    def on(self, backend: BackendT) -> "Chosen[ClusterT, BackendT]":
        """The same choice with another backend of the same cluster."""
        return Chosen(
            self.candidate, self.cluster, backend, self.rank_depth, self.skipped_for_kv, self.expected_queue_ms
        )


class Wait(NamedTuple):
    """Nothing acceptable now, but the request may wait: ask again after this long."""

    seconds: float


class NotFound(NamedTuple):
    """Nobody serves, or says it could serve, this target."""


class Unavailable(NamedTuple):
    """The target is known, but nobody can be asked."""


class AdmissionRejected(NamedTuple):
    """The target has too much work queued, or no known capacity; `reason` is the metric label."""

    reason: str


Outcome = Chosen[ClusterT, BackendT] | Wait | NotFound | Unavailable | AdmissionRejected
