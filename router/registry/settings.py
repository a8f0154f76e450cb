"""Settings of the registry; `router/config` fills them."""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistrySettings:
    """How the statistics of workers become those of their cluster (docs/control-plane.md, "Aggregates")."""

    adds_up_load: bool
    """Running queries and their input are sums, the best output rate is the maximum, and the queue times are the mean of all
    workers; otherwise these are figures of the worker that reported last."""

    free_slots: bool
    """A request does not queue at an engine that runs less than its concurrency; otherwise the estimate of its queue counts."""


CURRENT: Final = RegistrySettings(adds_up_load=True, free_slots=True)
"""The rules of this version, for a registry that is made without settings."""
