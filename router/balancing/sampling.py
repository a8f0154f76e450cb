"""Uniform samples of the candidates that are not excluded; the cost grows with the sample, not with all candidates."""

from collections.abc import Callable, Collection, Sequence
from random import Random

from router.balancing.candidate import Candidate


def sample(candidates: Sequence[Candidate], excluded: Collection[str], size: int, random: Random) -> list[Candidate]:
    """Up to `size` different candidates without those in `excluded`, in random order; every such list is equally likely."""
    count = len(candidates)
    draw = random.random
    if size + len(excluded) <= count // 2:
        return _by_rejection(candidates, excluded, size, draw)
    left = [candidate for candidate in candidates if candidate.cluster_id not in excluded] if excluded else candidates
    count = len(left)
    if size != 2 or count < 2:
        return random.sample(left, min(size, count))
    # The usual sample is a pair, for which `random.sample` is slow.
    first = int(draw() * count)
    second = int(draw() * (count - 1))
    return [left[first], left[second + (second >= first)]]


def _by_rejection(
    candidates: Sequence[Candidate], excluded: Collection[str], size: int, draw: Callable[[], float]
) -> list[Candidate]:
    """As `sample`, by rejection; at least half of the draws must be acceptable, which limits their expected number."""
    count = len(candidates)
    found: dict[int, Candidate] = {}
    while len(found) < size:
        index = int(draw() * count)
        if index not in found:
            candidate = candidates[index]
            if not excluded or candidate.cluster_id not in excluded:
                found[index] = candidate
    return list(found.values())
