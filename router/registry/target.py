"""One target: the workers that can serve (routing key, model) now.

Source: docs/control-plane.md, "What is routable". Snapshots are cached per cluster; a new one is taken only after a change.
"""

from bisect import bisect_left
from collections.abc import Collection, Sequence
from typing import NamedTuple

from router.registry.backend import Backend
from router.registry.cluster import RoutedCluster, Snapshot
from router.registry.registration import Registration
from router.registry.settings import CURRENT, RegistrySettings


class TargetKey(NamedTuple):
    """What a request asks for."""

    routing_key: str | None
    """None = unscoped, which matches only None."""
    model: str


def target_key(routing_key: str | None, model: str) -> TargetKey:
    """`TargetKey(routing_key, model)` for every request: the constructor is a Python function, which takes five times as long."""
    return tuple.__new__(TargetKey, (routing_key, model))


class RetiredTargetError(Exception):
    """The target has been removed from the registry; a new one of the same key is needed."""


class Target:
    """The routable clusters of one key, from the first routable worker to the last."""

    __slots__ = (
        "_changed",
        "_cluster_ids",
        "_clusters",
        "_settings",
        "_snapshots",
        "active_count",
        "balancer_state",
        "key",
        "retired",
        "version",
    )

    def __init__(self, key: TargetKey, settings: RegistrySettings = CURRENT) -> None:
        self.key = key
        self._settings = settings
        self.active_count = 0
        """Number of routable workers over all clusters."""
        self.version = 0
        """Increases with every change of `candidates`."""
        self.balancer_state: dict[object, object] = {}
        """State of the balancing algorithms for this target; dropped with it."""
        self.retired = False
        """True once the last worker has been withdrawn: the target is removed from the registry and not used again."""
        self._clusters: dict[str, RoutedCluster] = {}
        self._cluster_ids: list[str] = []
        self._snapshots: list[Snapshot] = []
        self._changed: list[RoutedCluster] = []

    def candidates(self) -> Sequence[Snapshot]:
        """One snapshot per cluster, sorted by cluster id; the cost grows only with the changes since the last call.

        Snapshots are immutable and may be kept. The sequence itself changes with the target: use it only within one
        decision, without a suspension point.
        """
        if self._changed:
            for cluster in self._changed:
                cluster.stale = False
                self._snapshots[bisect_left(self._cluster_ids, cluster.cluster_id)] = cluster.snapshot()
            self._changed.clear()
        return self._snapshots

    def pick(self, cluster_id: str, excluded_backend_ids: Collection[str]) -> tuple[RoutedCluster, Backend] | None:
        """The cluster of this id and its next worker that is not excluded; None if there is no such cluster or worker."""
        cluster = self._clusters.get(cluster_id)
        if cluster is None:
            return None
        backend = cluster.pick(excluded_backend_ids)
        return None if backend is None else (cluster, backend)

    def publish(self, backend: Backend) -> None:
        """Make a worker routable, or replace its backend. Raises `RetiredTargetError`.

        Backends of an earlier, retired generation of its cluster are removed.
        """
        if self.retired:
            raise RetiredTargetError
        registration = backend.registration
        cluster = self._clusters.get(registration.identity.cluster_id)
        if cluster is not None and cluster.generation is not registration.generation:
            self._drop(cluster)
            cluster = None
        if cluster is None:
            self._insert(RoutedCluster(backend, self._note_change, self._settings))
            self.active_count += 1
        else:
            if cluster.publish(backend):
                self.active_count += 1
            self._note_change(cluster)

    def withdraw(self, registration: Registration) -> None:
        """Remove the backend that this registration published, and those of a retired generation of its cluster."""
        cluster = self._clusters.get(registration.identity.cluster_id)
        if cluster is None:
            return
        if cluster.generation is not registration.generation:
            # The caller is stale if the stored generation lives; the stored one is stale if it does not.
            if cluster.generation.retired:
                self._drop(cluster)
        elif cluster.withdraw(registration):
            self.active_count -= 1
            if len(cluster):
                self._note_change(cluster)
            else:
                self._drop(cluster)

    def _note_change(self, cluster: RoutedCluster) -> None:
        self.version += 1
        if not cluster.stale:
            cluster.stale = True
            self._changed.append(cluster)

    def _insert(self, cluster: RoutedCluster) -> None:
        index = bisect_left(self._cluster_ids, cluster.cluster_id)
        self._clusters[cluster.cluster_id] = cluster
        self._cluster_ids.insert(index, cluster.cluster_id)
        self._snapshots.insert(index, cluster.snapshot())
        cluster.stale = False
        self.version += 1

    def _drop(self, cluster: RoutedCluster) -> None:
        self.active_count -= len(cluster)
        cluster.clear()
        index = bisect_left(self._cluster_ids, cluster.cluster_id)
        del self._clusters[cluster.cluster_id]
        del self._cluster_ids[index]
        del self._snapshots[index]
        if cluster.stale:
            self._changed.remove(cluster)
        self.version += 1
