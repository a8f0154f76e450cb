"""Whether this router can serve a request, as far as that depends on itself: the answer of `/readyz`, and why not.

Each reason is a sample of the gauge `not_ready`, and one line of the log when it appears and when it goes. What depends on workers is no
reason: workers find routers through readiness. See docs/operations.md, "Start and end".
"""

import enum
from collections.abc import Callable, Mapping
from functools import partial

import structlog

from router.telemetry.metrics import Metrics

_log = structlog.get_logger()


class NotReady(enum.Enum):
    """Why no request should be sent here; the values are those of the metric's label."""

    DRAINING = "draining"
    CERTIFICATE_EXPIRED = "certificate_expired"
    EVENT_LOOP_STALLED = "event_loop_stalled"
    TUNNEL_LISTENER_CLOSED = "tunnel_listener_closed"


class Readiness:
    """Asks every cause again at each call: `ready` for a probe, and once a second for the log and the metric."""

    def __init__(self, causes: Mapping[NotReady, Callable[[], bool]], metrics: Metrics) -> None:
        """`causes` tells for each reason whether it holds now; cheap, and never raises."""
        self._causes = dict(causes)
        self._reported: set[NotReady] = set()
        for reason in NotReady:
            metrics.not_ready.track(partial(self._holds, reason), (reason.value,))

    def _holds(self, reason: NotReady) -> int:
        return int(reason in self._causes and self._causes[reason]())

    def reasons(self) -> list[NotReady]:
        """What stands against readiness now, in the order of the enumeration."""
        return [reason for reason in NotReady if self._holds(reason)]

    def ready(self) -> bool:
        """Whether `/readyz` is 200."""
        self.poll()
        return not self._reported

    def poll(self) -> None:
        """Log what has changed since the last time."""
        now = set(self.reasons())
        for reason in NotReady:
            if reason in now - self._reported:
                _log.warning("not ready", reason=reason.value)
            elif reason in self._reported - now:
                _log.info("reason against readiness is gone", reason=reason.value, ready=not now)
        self._reported = now
