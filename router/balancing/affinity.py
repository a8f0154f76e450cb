"""Cache affinity by consistent hashing: the clusters an affinity key prefers, stable when clusters are added or removed."""

from bisect import bisect_left
from collections.abc import Collection, Sequence
from typing import Final

from router.balancing.candidate import Candidate
from router.balancing.hashing import affinity_field, cluster_field, field, hash64
from tunnel_protocol.limit import Limit

VIRTUAL_NODES: Final = Limit("policy.virtual_nodes", pieces=10_000)
"""Points per cluster on an affinity ring; each is hashed and kept."""


class AffinityRing:
    """The hash ring of one target and definition: a number of points per cluster, in the order of their hashes.

    When clusters are added or removed, only their own points are hashed and merged in or removed.
    """

    def __init__(self, prefix: bytes, virtual_nodes: int) -> None:
        self._prefix = prefix
        self._virtual_nodes = max(1, virtual_nodes)
        self._seen: list[Candidate] = []
        self._members: dict[str, Candidate] = {}
        self._points: list[tuple[int, str]] = []

    def preferred(
        self, affinity_key: str, candidates: Sequence[Candidate], excluded: Collection[str], count: int
    ) -> list[Candidate]:
        """Up to `count` candidates that are not excluded, in ring order from the key's position."""
        if candidates != self._seen:
            self._follow(candidates)
        members, points = self._members, self._points
        want = min(count, len(members))
        start = bisect_left(points, (hash64(self._prefix + affinity_field(affinity_key)), ""))
        taken: dict[str, Candidate] = {}
        for step in range(start - len(points), start):
            cluster_id = points[step][1]
            if cluster_id not in taken and cluster_id not in excluded:
                taken[cluster_id] = members[cluster_id]
                if len(taken) == want:
                    break
        return list(taken.values())

    def points(self) -> list[tuple[int, str]]:
        """All points in ring order, for explanations."""
        return list(self._points)

    def _follow(self, candidates: Sequence[Candidate]) -> None:
        members = {candidate.cluster_id: candidate for candidate in candidates}
        if members.keys() != self._members.keys():
            stayed = [point for point in self._points if point[1] in members]
            came = [point for name in members.keys() - self._members.keys() for point in self._points_of(name)]
            # Both parts are sorted, so this sort is a merge.
            self._points = sorted(stayed + sorted(came))
        self._members = members
        self._seen = list(candidates)

    def _points_of(self, cluster_id: str) -> list[tuple[int, str]]:
        start = self._prefix + cluster_field(cluster_id)
        return [
            (hash64(start + field(b"virtual_node", index.to_bytes(8, "little"))), cluster_id)
            for index in range(self._virtual_nodes)
        ]
