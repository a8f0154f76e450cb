"""Raises the soft limit of open files: each tunnel and each registration has a socket of its own towards a router."""

import resource
from typing import Final

import structlog

from kubernetes_router import grpc_listener, health
from kubernetes_router.relay import flows

_log = structlog.get_logger()

_OTHERS: Final = 128
"""Files beside the sockets of peers: listeners, the Kubernetes API, certificates, the log."""


def files_needed() -> int:
    """How many files may be open when all limits of peers are reached."""
    limits = (flows.FLOWS, flows.MOVED, grpc_listener.CONNECTIONS, grpc_listener.CALLS, health.CONNECTIONS)
    return _OTHERS + sum(limit.pieces or 0 for limit in limits)


def raise_file_limit() -> None:
    """Raise the soft limit to what is needed, or to the hard limit; a lower one is logged and means fewer tunnels."""
    needed = files_needed()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        if soft < needed:
            _log.warning("few files may be open; tunnels beyond that are refused", limit=soft, needed=needed)
