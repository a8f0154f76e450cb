"""Which candidates the ranking algorithms may choose for a request, and the reasons against the others."""

from collections.abc import Collection
from enum import Enum

from router.balancing.candidate import Candidate
from router.balancing.estimates import valid_tps


class Feasibility(Enum):
    """The verdict on one candidate."""

    ELIGIBLE = "eligible"
    EXCLUDED = "retry-excluded"
    NO_INPUT_TOKENS = "missing input tokens"
    KV_MISSING = "KV missing"
    KV_LOW = "KV low"

    @property
    def is_kv_skip(self) -> bool:
        """Whether the reason is the KV cache."""
        return self in (Feasibility.KV_MISSING, Feasibility.KV_LOW)


def feasibility(
    candidate: Candidate, input_tokens: int | None, excluded: Collection[str], *, consider_kv: bool
) -> Feasibility:
    """The verdict of the first rule that applies."""
    if excluded and candidate.cluster_id in excluded:
        return Feasibility.EXCLUDED
    if not consider_kv:
        return Feasibility.ELIGIBLE
    if input_tokens is None:
        return Feasibility.NO_INPUT_TOKENS
    free = candidate.kv_cache_free_tokens
    if not (free or candidate.kv_cache_capacity_tokens or candidate.kv_cache_used_tokens):
        return Feasibility.KV_MISSING
    return Feasibility.KV_LOW if free < input_tokens else Feasibility.ELIGIBLE


def ranking_rule(candidate: Candidate, input_tokens: int | None, *, consider_kv: bool) -> str | None:
    """The rule that excludes a candidate from any ranking, independent of its load; None if there is none."""
    if not valid_tps(candidate):
        return "no valid throughput"
    verdict = feasibility(candidate, input_tokens, (), consider_kv=consider_kv)
    return None if verdict is Feasibility.ELIGIBLE else verdict.value
