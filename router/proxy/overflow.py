"""Prefers a tunnel with a free stream to waiting for a stream of a busy one.

A worker grants a limited number of streams. When the chosen one has none left, another worker of the same cluster or of
another cluster that has one is used instead. While the chosen worker has a free stream, nothing changes.
"""

from collections.abc import Callable
from typing import Final

from router.proxy.placement import RoutedChoice
from router.registry import Backend

_MAX_OTHER_CLUSTERS: Final = 8


def with_free_stream(
    chosen: RoutedChoice, failed_backends: set[str], select_elsewhere: Callable[[set[str]], RoutedChoice | None]
) -> RoutedChoice:
    """`chosen` if its backend has a free stream, else an alternative that has one, else `chosen`."""
    if not _is_full(chosen.backend):
        return chosen
    excluded: set[str] = set()
    candidate: RoutedChoice | None = chosen
    while candidate is not None and len(excluded) <= _MAX_OTHER_CLUSTERS:
        for backend in candidate.cluster.backends():
            if backend.inference_server_id not in failed_backends and not _is_full(backend):
                return candidate.on(backend)
        excluded.add(candidate.cluster.cluster_id)
        candidate = select_elsewhere(excluded)
    return chosen


def _is_full(backend: Backend) -> bool:
    """Whether the tunnels are open but every stream is in use (an attempt handles tunnels that are closed)."""
    tunnels = backend.registration.tunnels
    return tunnels.free_streams() == 0 and tunnels.healthy()
