"""Who can serve what, right now. Pure memory: no I/O and no clock of its own (docs/control-plane.md)."""

from router.registry.cluster import RoutedCluster
from router.registry.registration import AlreadyRegisteredError, Identity, Registration
from router.registry.registry import Registry
from router.registry.reservations import Reservation
from router.registry.snapshot import Publication, Snapshot
from router.registry.stats import ModelStats, ModelUpdate
from router.registry.target import Target, TargetKey

__all__ = [
    "AlreadyRegisteredError",
    "Identity",
    "ModelStats",
    "ModelUpdate",
    "Publication",
    "Registration",
    "Registry",
    "Reservation",
    "RoutedCluster",
    "Snapshot",
    "Target",
    "TargetKey",
]
