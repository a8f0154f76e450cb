"""The log lines about the end of a registration stream, in the words of release line 0.18 of the reference.

Source: docs/control-plane.md, "End". The counters use labels of their own, which tell more kinds of ends apart.
"""

from typing import Final

import structlog

from router.registry.registration import Registration

_log = structlog.get_logger()

CANCELLED: Final = "cancelled"
CLOSED: Final = "closed"
IDLE_TIMEOUT: Final = "idle_timeout"
READ_FAILED: Final = "read_failed"
SHUTDOWN: Final = "shutdown"
SUPERSEDED: Final = "superseded"

_REASONS: Final = {
    CANCELLED: "stream_read",
    CLOSED: "stream_closed",
    IDLE_TIMEOUT: "idle_timeout",
    READ_FAILED: "stream_read",
    SHUTDOWN: "shutdown",
    SUPERSEDED: "superseded",
}
_REFUSED: Final = "update_rejected"


def log_deregistered(registration: Registration, label: str, error: str | None) -> None:
    """A registration has ended, and its worker is removed from routing; `label` is the end's name in metrics."""
    reason = _REASONS.get(label, _REFUSED)
    identity = registration.identity
    # A shutdown ends every registration; any other end takes a worker away that this router could use.
    (_log.info if reason == SHUTDOWN else _log.warning)(
        "inference server deregistered; removed from routing",
        inference_server_id=identity.inference_server_id,
        cluster_id=identity.cluster_id,
        routing_key=identity.routing_key,
        reverse_tunnel=identity.reverse,
        reason=reason,
        removed_model_ids=sorted(registration.models),
        error=error,
    )


def log_before_admission(label: str, error: str | None, peer: str) -> None:
    """A stream has ended without a registration; `label` is the end's name in metrics."""
    reason = _REASONS.get(label, _REFUSED)
    (_log.info if reason == SHUTDOWN else _log.warning)(
        "register inference servers stream exited before admission", reason=reason, peer=peer, error=error
    )
