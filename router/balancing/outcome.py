"""The results of one decision."""

from typing import Generic, NamedTuple, TypeVar

from router.balancing.candidate import Candidate

ClusterT = TypeVar("ClusterT")
"""The type of the live cluster of a candidate; opaque to this package, which only passes it on."""
BackendT = TypeVar("BackendT")
"""The type of one inference server of a cluster; opaque to this package."""


class Choice:
    """What an algorithm returns: a cluster, and details of the decision."""

    __slots__ = ("candidate", "rank_depth", "skipped_for_kv")

    def __init__(self, candidate: Candidate, rank_depth: int = 1, skipped_for_kv: bool = False) -> None:
        self.candidate = candidate
        self.rank_depth = rank_depth
        """1-based position in the algorithm's ranking; 1 for algorithms without one."""
        self.skipped_for_kv = skipped_for_kv
        """Whether a better-ranked cluster was skipped because it has too few free KV cache tokens."""

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Choice):
            return NotImplemented
        mine = (self.candidate, self.rank_depth, self.skipped_for_kv)
        return mine == (other.candidate, other.rank_depth, other.skipped_for_kv)


class Chosen(Generic[ClusterT, BackendT]):
    """The result with a cluster and one of its backends."""

    # Not a named tuple: it is created for every request, and this is faster, compiled or not.
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
        """The statistics used for the decision."""
        self.cluster = cluster
        """The cluster of `candidate`."""
        self.backend = backend
        self.rank_depth = rank_depth
        self.skipped_for_kv = skipped_for_kv
        self.expected_queue_ms = expected_queue_ms
        """The queue estimate in milliseconds that is sent to the worker; None if there is none."""

    def on(self, backend: BackendT) -> "Chosen[ClusterT, BackendT]":
        """The same choice with another backend of the same cluster."""
        return Chosen(
            self.candidate, self.cluster, backend, self.rank_depth, self.skipped_for_kv, self.expected_queue_ms
        )


class Wait:
    """No candidate is acceptable now, but the request may wait.

    An algorithm returns it with the seconds after which its answer changes by the age of the request alone; `Selector.select`
    with the seconds after which it is to be called again.
    """

    # Not a named tuple: the result of every decision is compared with this type, which is faster so.
    __slots__ = ("remaining_ms", "seconds")

    def __init__(self, seconds: float, remaining_ms: float | None = None) -> None:
        self.seconds = seconds
        self.remaining_ms = remaining_ms
        """Milliseconds left to wait; set by `select` if the algorithm asked for the wait, else None."""


def shorter(one: Wait | None, other: Wait | None) -> Wait | None:
    """The wait that ends first; None if there is none."""
    if one is None or other is None:
        return other if one is None else one
    return one if one.seconds <= other.seconds else other


class NotFound(NamedTuple):
    """No live registration serves or advertises this target."""


class Unavailable(NamedTuple):
    """The target is known, but no backend can be chosen."""

    at_capacity: bool = False
    """Whether there are clusters that have not failed for this request, and the algorithm accepts none of them now."""


class AdmissionRejected(NamedTuple):
    """Input-work admission refused: too much work is queued, or the throughput is unknown; `reason` is the metric label."""

    reason: str


Outcome = Chosen[ClusterT, BackendT] | Wait | NotFound | Unavailable | AdmissionRejected
