"""The interface of an algorithm, and how installed algorithms are found.

An algorithm is created once per definition (its settings); per target it creates a balancer, which holds the state of the
algorithm for that target (counters, caches) and is dropped with the target. Third-party packages add algorithms by an entry
point in the group `llm_request_router.algorithms`; see docs/balancing.md, "Writing your own".
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from importlib.metadata import EntryPoint, entry_points
from random import Random
from typing import Final, NamedTuple, Protocol

from router.balancing.candidate import Candidate
from router.balancing.outcome import Choice, Wait
from router.balancing.request import RoutingRequest

ENTRY_POINT_GROUP: Final = "llm_request_router.algorithms"


class Balancer(Protocol):
    """Chooses for one target. One with state should also have `copy()`, so that decisions can be explained."""

    def choose(
        self,
        request: RoutingRequest,
        candidates: Sequence[Candidate],
        excluded: Collection[str],
        elapsed_ms: float,
    ) -> Choice | Wait | None:
        """A choice among `candidates` (not empty); a wait if there will be one at a greater age; None otherwise.

        Must not keep `candidates`, sleep or raise. `excluded` are cluster ids; `elapsed_ms` is the age of the request in
        milliseconds. A request waits 60 s at most, without `x-max-wait-ms` too, and is asked for again every 25 ms.
        """


class Explanation(NamedTuple):
    """What an algorithm reports about candidates besides its choice, by cluster id."""

    rules: Mapping[str, str]
    """The first rule that excludes a candidate, for the excluded ones."""
    columns: Mapping[str, Mapping[str, object]]
    """Further figures (`score`, `rank`)."""
    comparator: str | None = None
    """The configured comparator; None if there is none."""


class Algorithm(Protocol):
    """One configured algorithm. It may also have the methods of `MayTake` and `Explain`, called `may_take` and `explanation`."""

    def balancer(self, routing_key: str | None, model: str) -> Balancer:
        """A new balancer for a target."""


Details = Mapping[str, object]
"""What a balancer reports of a decision besides candidates, for explanations."""
MayTake = Callable[[RoutingRequest, Candidate], bool]
"""Whether a candidate can be chosen at all, independent of its load. Those that cannot do not count for admission."""
Explain = Callable[[RoutingRequest, Sequence[Candidate], float], Explanation]
"""(request, candidates, age of the request in milliseconds) -> explanation. Must not change any state."""
MakeAlgorithm = Callable[[dict[str, object], Random], Algorithm]
"""(settings of a definition, random numbers) -> algorithm. Raises `ValueError` for invalid settings."""


def copy_of(balancer: Balancer) -> Balancer | None:
    """A balancer in the same state, for explanations; None if this one has no `copy()`."""
    copy: Callable[[], Balancer] | None = getattr(balancer, "copy", None)
    return None if copy is None else copy()


def details_of(
    balancer: Balancer, request: RoutingRequest, candidates: Sequence[Candidate], elapsed_ms: float
) -> Details | None:
    """What the balancer's `details` returns, which must not change any state; None if it has none or nothing to tell."""
    details: Callable[[RoutingRequest, Sequence[Candidate], float], Details | None] | None
    details = getattr(balancer, "details", None)
    return None if details is None else details(request, candidates, elapsed_ms)


def may_take_of(algorithm: Algorithm) -> MayTake | None:
    """The algorithm's `may_take`; None if it has none."""
    found: MayTake | None = getattr(algorithm, "may_take", None)
    return found


def explanation_of(algorithm: Algorithm) -> Explain | None:
    """The algorithm's `explanation`; None if it has none."""
    found: Explain | None = getattr(algorithm, "explanation", None)
    return found


def installed_algorithms(found: Sequence[EntryPoint] | None = None) -> dict[str, MakeAlgorithm]:
    """Third-party algorithms by name, loaded from their entry points."""
    points = entry_points(group=ENTRY_POINT_GROUP) if found is None else found
    return {point.name: point.load() for point in points}
