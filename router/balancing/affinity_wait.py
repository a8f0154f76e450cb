"""The settings of waits for the clusters that an affinity key prefers, shared by both wait-and-widen algorithms."""

from collections.abc import Sequence
from dataclasses import dataclass

from router.balancing.candidate import Candidate
from router.balancing.fields import Fields


@dataclass(frozen=True)
class AffinityWait:
    """How long a request waits for its affinity group, and how much of its prompt counts there; defaults: not at all, all of it."""

    wait_ms: int = 0
    """Age in milliseconds before which only the group is asked."""
    input_tokens_scale: float = 1.0
    """Share of the input tokens that count for the time to first token of a member of the group, 0 to 1."""

    @classmethod
    def read(cls, fields: Fields) -> "AffinityWait":
        """Read the settings from a definition."""
        wait_ms = fields.unsigned("cache_affinity_wait_ms", 0)
        scale = fields.number("cache_affinity_input_tokens_scale", 1.0)
        if not 0.0 <= scale <= 1.0:  # NaN is not either
            fields.refuse(f"cache_affinity_input_tokens_scale must be between 0 and 1, got {scale}")
        return cls(wait_ms, scale)


def affinity_details(group: Sequence[Candidate], wait: AffinityWait, elapsed_ms: float) -> dict[str, object]:
    """The affinity group of a request and what applies to it, for explanations."""
    return {
        "group": [candidate.cluster_id for candidate in group],
        "wait_ms": wait.wait_ms,
        "wait_left_ms": max(0.0, wait.wait_ms - elapsed_ms),
        "input_tokens_scale": wait.input_tokens_scale,
    }
