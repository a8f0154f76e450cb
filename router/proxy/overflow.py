"""Prefer a tunnel with a free stream over queueing behind a busy one.

A worker allows a limited number of streams at a time. When the chosen one has none left, a sibling of the same cluster or
another cluster that has is better than waiting out of sight. While streams are free this changes nothing.
"""

from collections.abc import Callable

from router.proxy.placement import RoutedChoice
from router.registry import Backend

_MAX_OTHER_CLUSTERS = 8


def with_free_stream(
    chosen: RoutedChoice, failed_backends: set[str], select_elsewhere: Callable[[set[str]], RoutedChoice | None]
) -> RoutedChoice:
    """`chosen` itself if its backend can be asked now, else an alternative that can, else `chosen`."""
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
    """Whether the tunnels are up but every stream is taken (tunnels that are down are the attempt's business)."""
    tunnels = backend.registration.tunnels
    return tunnels.free_streams() == 0 and tunnels.healthy()
