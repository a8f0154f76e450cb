"""Whether this router itself is able to serve a request, and if not, for which reasons: the answer of `/readyz`.

Each reason has a sample of the gauge `not_ready`, and a log line when it begins and when it ends. Only a warm-up waits for
workers, and only for a time (`warm_up.py`). See docs/operations.md, "Readiness".
"""

import enum
from collections.abc import Callable, Mapping
from functools import partial

import structlog

from router.telemetry.metrics import Metrics

_log = structlog.get_logger()


class NotReady(enum.Enum):
    """A reason why no request should be sent to this router; the value is the label in the metric."""

    DRAINING = "draining"
    CERTIFICATE_EXPIRED = "certificate_expired"
    EVENT_LOOP_STALLED = "event_loop_stalled"
    TUNNEL_LISTENER_CLOSED = "tunnel_listener_closed"
    WARMING_UP = "warming_up"

    @property
    def expected(self) -> bool:
        """Whether it belongs to every start or end, and is no warning."""
        return self in (NotReady.DRAINING, NotReady.WARMING_UP)


class Readiness:
    """Evaluates all causes at each call: `ready` for a probe, `poll` once a second for the log and the metric."""

    def __init__(self, causes: Mapping[NotReady, Callable[[], bool]], metrics: Metrics) -> None:
        """`causes` has a function per reason that returns whether it holds now; it must be cheap and must not raise."""
        self._causes = dict(causes)
        self._reported: set[NotReady] = set()
        for reason in NotReady:
            metrics.not_ready.track(partial(self._holds, reason), (reason.value,))

    def _holds(self, reason: NotReady) -> int:
        return int(reason in self._causes and self._causes[reason]())

    def reasons(self) -> list[NotReady]:
        """The reasons that hold now, in the order of the enumeration."""
        return [reason for reason in NotReady if self._holds(reason)]

    def ready(self) -> bool:
        """Whether `/readyz` is 200."""
        self.poll()
        return not self._reported

    def poll(self) -> None:
        """Log the reasons that have begun or ended since the last call."""
        now = set(self.reasons())
        for reason in NotReady:
            if reason in now - self._reported:
                (_log.info if reason.expected else _log.warning)("not ready", reason=reason.value)
            elif reason in self._reported - now:
                _log.info("reason against readiness is gone", reason=reason.value, ready=not now)
        self._reported = now
