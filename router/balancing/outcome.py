"""What came of asking the policy once."""

from typing import Any, NamedTuple

from router.balancing.candidate import Candidate


class Choice(NamedTuple):
    """What an algorithm returns: a cluster, and how it came by it."""

    candidate: Candidate
    rank_depth: int = 1
    """1-based position in the algorithm's ranking; 1 for algorithms without one."""
    skipped_for_kv: bool = False
    """A better-ranked cluster was passed over for lack of free KV cache tokens."""


class Chosen(NamedTuple):
    """A cluster and one of its backends."""

    candidate: Any
    """The registry's snapshot of the chosen cluster."""
    backend: Any
    """The registry's publication of the chosen backend."""
    rank_depth: int
    skipped_for_kv: bool
    expected_queue_ms: int | None
    """The queue estimate to tell the worker; None if there is none."""
    candidate_count: int


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


Outcome = Chosen | Wait | NotFound | Unavailable | AdmissionRejected
