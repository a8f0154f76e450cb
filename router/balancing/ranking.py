"""The weighted rendezvous ranking of an affinity key: clusters by throughput over an exponential drawn from their hash.

The exponential of (key, cluster) never changes, so it is cached per key; throughput changes cost no hashing.
"""

from collections import OrderedDict
from collections.abc import Sequence

from router.balancing.candidate import Candidate
from router.balancing.estimates import valid_tps
from router.balancing.hashing import affinity_field, cluster_field, exponential, hash64

MAX_KEYS = 4096
MAX_KEY_BYTES = 256


class RendezvousRanking:
    """The ranking of one target and definition."""

    def __init__(self, prefix: bytes) -> None:
        self._prefix = prefix
        self._cluster_fields: dict[str, bytes] = {}
        self._exponentials: OrderedDict[str, dict[str, float | None]] = OrderedDict()

    def scored(self, affinity_key: str | None, candidates: Sequence[Candidate]) -> list[tuple[float, Candidate]]:
        """(score, candidate) of all candidates that have a score, unsorted."""
        exponentials = self._of_key(affinity_key or "")
        get = exponentials.get
        found = []
        for candidate in candidates:
            tps = valid_tps(candidate)
            if not tps:
                continue
            drawn = get(candidate.cluster_id, -1.0)
            if drawn == -1.0:
                drawn = self._draw(affinity_key or "", candidate.cluster_id)
                exponentials[candidate.cluster_id] = drawn
            if drawn is not None:
                found.append((tps / drawn, candidate))
        if len(exponentials) > 2 * len(candidates) + 64:
            live = {candidate.cluster_id for candidate in candidates}
            for cluster_id in exponentials.keys() - live:
                del exponentials[cluster_id]
        return found

    def ranked(self, affinity_key: str | None, candidates: Sequence[Candidate]) -> list[Candidate]:
        """Best first; equal scores by cluster id."""
        scored = self.scored(affinity_key, candidates)
        scored.sort(key=lambda pair: (-pair[0], pair[1].cluster_id))
        return [candidate for _, candidate in scored]

    def _of_key(self, key: str) -> dict[str, float | None]:
        cached = self._exponentials.get(key)
        if cached is not None:
            self._exponentials.move_to_end(key)
            return cached
        fresh: dict[str, float | None] = {}
        if len(key.encode()) <= MAX_KEY_BYTES:
            if len(self._exponentials) >= MAX_KEYS:
                self._exponentials.popitem(last=False)
            self._exponentials[key] = fresh
        return fresh

    def _draw(self, key: str, cluster_id: str) -> float | None:
        fields = self._cluster_fields.get(cluster_id)
        if fields is None:
            if len(self._cluster_fields) >= 2 * MAX_KEYS:
                self._cluster_fields.clear()
            fields = self._cluster_fields[cluster_id] = cluster_field(cluster_id)
        return exponential(hash64(self._prefix + affinity_field(key) + fields))


def beats(one: tuple[float, Candidate], other: tuple[float, Candidate]) -> bool:
    """Whether `one` stands before `other` in the ranking."""
    return one[0] > other[0] or (one[0] == other[0] and one[1].cluster_id < other[1].cluster_id)
