"""The interface of an algorithm, and where algorithms come from.

An algorithm is made once per definition (its settings); per routing target it hands out a balancer, which holds what the
algorithm remembers about that target (counters, caches) and dies with the target. Third-party packages add algorithms by an
entry point in the group `llm_request_router.algorithms`; see docs/balancing.md, "Writing your own".
"""

from collections.abc import Callable, Collection, Sequence
from importlib.metadata import EntryPoint, entry_points
from random import Random
from typing import Protocol

from router.balancing.candidate import Candidate
from router.balancing.outcome import Choice
from router.balancing.request import RoutingRequest

ENTRY_POINT_GROUP = "llm_request_router.algorithms"


class Balancer(Protocol):
    """Chooses for one target. One that counts should also have `copy()`, so that decisions can be explained."""

    def choose(
        self,
        request: RoutingRequest,
        candidates: Sequence[Candidate],
        excluded: Collection[str],
        elapsed_ms: float,
    ) -> Choice | None:
        """A choice among `candidates` (never empty), or None. Must not keep `candidates`, sleep or raise."""


class Algorithm(Protocol):
    """One configured algorithm."""

    def balancer(self, routing_key: str | None, model: str) -> Balancer:
        """A fresh balancer for a target."""


MakeAlgorithm = Callable[[dict[str, object], Random], Algorithm]
"""Settings of a definition and a source of randomness -> algorithm. Raises `ValueError` for settings it refuses."""


def copy_of(balancer: Balancer) -> Balancer | None:
    """A balancer in the same state, for explanations; None if this one has no `copy()`."""
    copy: Callable[[], Balancer] | None = getattr(balancer, "copy", None)
    return None if copy is None else copy()


def installed_algorithms(found: Sequence[EntryPoint] | None = None) -> dict[str, MakeAlgorithm]:
    """Third-party algorithms by name, as their entry points load."""
    points = entry_points(group=ENTRY_POINT_GROUP) if found is None else found
    return {point.name: point.load() for point in points}
