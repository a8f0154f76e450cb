"""The weighted rendezvous ranking of an affinity key: clusters by throughput divided by an exponential draw from their hash.

The draw of (key, cluster) is constant, so draws are cached per key, in the order of the candidates: a decision costs one
division per cluster, and neither a change of throughput nor the removal of a cluster needs hashing.
"""

from array import array
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from operator import attrgetter, truediv
from typing import Final

from router.balancing.candidate import Candidate
from router.balancing.estimates import valid_tps
from router.balancing.hashing import affinity_field, cluster_field, exponential, hash64

MAX_KEYS: Final = 4096
MAX_KEY_BYTES: Final = 256
MAX_DRAWS: Final = MAX_KEYS * 1024
"""Maximum number of cached draws of all keys, 8 bytes each."""
_NO_SCORE: Final = -1.0
_MAXIMA: Final = 4
_by_id = attrgetter("cluster_id")


class RendezvousRanking:
    """The ranking of one target and definition."""

    def __init__(self, prefix: bytes) -> None:
        self._prefix = prefix
        self._seen: list[Candidate] = []
        self._ordered: list[Candidate] = []
        self._ids: tuple[str, ...] = ()
        self._rates: list[float] = []
        # Per key: the cluster ids, and their draws in the same order.
        self._draws: OrderedDict[str, tuple[tuple[str, ...], array[float]]] = OrderedDict()

    def ranked(self, affinity_key: str | None, candidates: Sequence[Candidate]) -> Iterator[tuple[float, Candidate]]:
        """(score, candidate), best first, equal scores by cluster id; candidates without a score are left out.

        The first few are found without sorting the others, as callers rarely need more.
        """
        if candidates != self._seen:
            self._look_at(candidates)
        ordered = self._ordered
        scores = list(map(truediv, self._rates, self._draws_of(affinity_key or "")))
        for _ in range(min(_MAXIMA, len(scores))):
            best = max(scores)
            if best <= 0.0:
                return
            index = scores.index(best)
            yield best, ordered[index]
            scores[index] = _NO_SCORE
        rest = [index for index, score in enumerate(scores) if score > 0.0]
        rest.sort(key=scores.__getitem__, reverse=True)
        for index in rest:
            yield scores[index], ordered[index]

    def _look_at(self, candidates: Sequence[Candidate]) -> None:
        self._seen = list(candidates)
        self._ordered = sorted(candidates, key=_by_id)
        self._rates = [valid_tps(candidate) for candidate in self._ordered]
        ids = tuple([candidate.cluster_id for candidate in self._ordered])
        if ids != self._ids:
            self._ids = ids

    def _draws_of(self, key: str) -> "array[float]":
        known = self._draws.get(key)
        if known is not None and known[0] is self._ids:
            self._draws.move_to_end(key)
            return known[1]
        kept = {} if known is None else dict(zip(*known, strict=True))
        start = self._prefix + affinity_field(key)
        draws = array("d", [kept.get(name) or _draw(start, name) for name in self._ids])
        if len(key.encode()) <= MAX_KEY_BYTES:
            self._draws.pop(key, None)
            while len(self._draws) >= max(1, min(MAX_KEYS, MAX_DRAWS // len(draws))):
                self._draws.popitem(last=False)
            self._draws[key] = (self._ids, draws)
        return draws


def ranking_columns(
    prefix: bytes, affinity_key: str | None, candidates: Sequence[Candidate]
) -> dict[str, dict[str, object]]:
    """Rank and score of each candidate for explanations, by cluster id; empty if the ranking is empty."""
    ranked = list(RendezvousRanking(prefix).ranked(affinity_key, candidates)) if candidates else []
    if not ranked:
        return {}
    columns: dict[str, dict[str, object]] = {one.cluster_id: {"rank": None, "score": None} for one in candidates}
    for rank, (score, candidate) in enumerate(ranked, 1):
        columns[candidate.cluster_id] = {"rank": rank, "score": score}
    return columns


def _draw(start: bytes, cluster_id: str) -> float:
    """The exponential draw of one cluster; negative if there is none, which makes its score negative."""
    return exponential(hash64(start + cluster_field(cluster_id))) or _NO_SCORE
