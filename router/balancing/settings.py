"""Settings of load balancing that are not in its document; `router/config` fills them."""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True, kw_only=True)
class BalancingSettings:
    """Which form of the algorithms is used (docs/compatibility.md)."""

    affinity_waits: bool
    """The widening algorithms wait for the clusters of an affinity key, as a document may configure; otherwise the form of the
    algorithms is used that knows neither these waits nor their settings."""

    expressions: bool
    """Whether the method header may hold an expression; otherwise one is an unknown method."""


CURRENT: Final = BalancingSettings(affinity_waits=True, expressions=True)
"""The algorithms of this version, for policies that are made without settings."""
