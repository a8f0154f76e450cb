"""Cache affinity by consistent hashing: the clusters an affinity key prefers, stable under membership changes."""

from bisect import bisect_left
from collections.abc import Collection, Sequence

from router.balancing.candidate import Candidate
from router.balancing.hashing import affinity_field, cluster_field, field, hash64

MAX_CACHED_CLUSTERS = 8192


class AffinityRing:
    """The ring of one target and definition; rebuilt only when the set of clusters changes."""

    def __init__(self, prefix: bytes, virtual_nodes: int) -> None:
        self._prefix = prefix
        self._virtual_nodes = max(1, virtual_nodes)
        self._points: dict[str, list[int]] = {}
        self._members: tuple[str, ...] = ()
        self._hashes: list[int] = []
        self._ids: list[str] = []

    def preferred(
        self, affinity_key: str, candidates: Sequence[Candidate], excluded: Collection[str], count: int
    ) -> list[Candidate]:
        """Up to `count` candidates in ring order from the key's position, excluded ones passed over."""
        by_id = {candidate.cluster_id: candidate for candidate in candidates}
        self._follow(tuple(by_id))
        want = min(count, len(by_id))
        start = bisect_left(self._hashes, hash64(self._prefix + affinity_field(affinity_key)))
        taken: dict[str, Candidate] = {}
        size = len(self._ids)
        for step in range(size):
            cluster_id = self._ids[(start + step) % size]
            if cluster_id not in taken and cluster_id not in excluded:
                taken[cluster_id] = by_id[cluster_id]
                if len(taken) == want:
                    break
        return list(taken.values())

    def points(self) -> list[tuple[int, str]]:
        """All points in ring order, for explanations."""
        return list(zip(self._hashes, self._ids, strict=True))

    def _follow(self, members: tuple[str, ...]) -> None:
        if members == self._members:
            return
        if len(self._points) > MAX_CACHED_CLUSTERS:
            self._points.clear()
        points = sorted((hashed, cluster_id) for cluster_id in members for hashed in self._points_of(cluster_id))
        self._members = members
        self._hashes = [hashed for hashed, _ in points]
        self._ids = [cluster_id for _, cluster_id in points]

    def _points_of(self, cluster_id: str) -> list[int]:
        points = self._points.get(cluster_id)
        if points is None:
            start = self._prefix + cluster_field(cluster_id)
            points = [
                hash64(start + field(b"virtual_node", index.to_bytes(8, "little")))
                for index in range(self._virtual_nodes)
            ]
            self._points[cluster_id] = points
        return points
