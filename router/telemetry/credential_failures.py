"""Refused tokens and certificates: logged when a worker begins to fail and when it is accepted again, and always counted.

A refused worker retries every second without end, so there is one log line per change. Meaning of the metric:
docs/operations.md, "Metrics".
"""

from collections import OrderedDict
from enum import Enum

import structlog

from router.telemetry.families import OVERFLOW
from router.telemetry.metrics import Metrics

_log = structlog.get_logger()

MAX_KNOWN = 1_000
"""Failing workers that are remembered; beyond it the one whose last failure is oldest is dropped and may be logged again.
Also the limit of series by id: an unauthenticated worker can send any id."""


class Credential(Enum):
    """The kind of credential that was refused; the value is the metric's label."""

    REGISTRATION_TOKEN = "registration_token"  # noqa: S105 - a name
    TUNNEL_TOKEN = "tunnel_token"  # noqa: S105
    WORKER_CERTIFICATE = "worker_certificate"
    ROUTER_CERTIFICATE = "router_certificate"


_TEXTS = {
    Credential.REGISTRATION_TOKEN: "gRPC registration authentication",
    Credential.TUNNEL_TOKEN: "reverse handshake authentication",
    Credential.WORKER_CERTIFICATE: "verification of a worker's certificate",
    Credential.ROUTER_CERTIFICATE: "verification of this router's certificate by a worker",
}


class CredentialFailures:
    """The workers that fail now, and the causes."""

    def __init__(self, metrics: Metrics) -> None:
        self._failing: OrderedDict[tuple[Credential, str, str], str] = OrderedDict()
        self._counter = metrics.worker_credential_failures_total

    def failed(self, credential: Credential, cause: str, *, host: str, inference_server_id: str = "") -> None:
        """A worker was refused, or refused this router. `host` is its address without port; the id is empty if unknown."""
        key = (credential, inference_server_id, host)
        if self._counter.series() >= MAX_KNOWN and not self._counter.value((credential.value, *key[1:])):
            self._counter.inc((credential.value, OVERFLOW, OVERFLOW))
        else:
            self._counter.inc((credential.value, *key[1:]))
        if self._failing.get(key) != cause:
            _log.warning(
                f"{_TEXTS[credential]} failed", error=cause, inference_server_id=inference_server_id or None, peer=host
            )
        self._failing[key] = cause
        self._failing.move_to_end(key)
        if len(self._failing) > MAX_KNOWN:
            self._failing.popitem(last=False)

    def passed(self, credential: Credential, *, host: str, inference_server_id: str = "") -> None:
        """A worker was accepted."""
        if self._failing.pop((credential, inference_server_id, host), None) is not None:
            _log.info(f"{_TEXTS[credential]} works again", inference_server_id=inference_server_id or None, peer=host)
