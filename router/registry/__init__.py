"""Which workers can serve which targets now. Pure memory: no I/O and no clock of its own (docs/control-plane.md)."""

from router.ports.identity import Identity
from router.registry.backend import Backend
from router.registry.cluster import RoutedCluster, Snapshot
from router.registry.registration import AlreadyRegisteredError, Registration
from router.registry.registry import Registry
from router.registry.reservations import Reservation
from router.registry.stats import ModelStats, ModelUpdate
from router.registry.target import Target, TargetKey, target_key

__all__ = [
    "AlreadyRegisteredError",
    "Backend",
    "Identity",
    "ModelStats",
    "ModelUpdate",
    "Registration",
    "Registry",
    "Reservation",
    "RoutedCluster",
    "Snapshot",
    "Target",
    "TargetKey",
    "target_key",
]
