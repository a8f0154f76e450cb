"""Applies and acknowledges a report in one step, while the bytes of its connection are read: all but a worker's first few reports.

A task that is woken for each report would cost as much as everything else that a report causes.
"""

from collections.abc import Callable
from typing import Protocol

from google.protobuf.message import DecodeError

from router.control_plane.admission import RefusedError, check_unchanged
from router.control_plane.idle_timer import IdleTimer
from router.control_plane.last_report import LastReport
from router.control_plane.message_limits import MessageLimitError, check_limits
from router.control_plane.report_stream import ReportStream
from router.control_plane.unroutable_models import UnroutableModels
from router.ports.registration_tunnels import WorkerTunnels
from router.registry.registration import Registration
from router.registry.registry import Registry


class Waiting(Protocol):
    """The queue of reports; see `Inbox`."""

    @property
    def awaited(self) -> bool:
        """Whether nothing is queued or being processed."""


class ImmediateUpdate:
    """One step of one registration stream; shares its parts."""

    def __init__(
        self,
        registry: Registry,
        clock: Callable[[], float],
        call: ReportStream,
        ack: bytes,
        inbox: Waiting,
        idle: IdleTimer,
        last: LastReport,
        unroutable: UnroutableModels,
    ) -> None:
        self.registration: Registration | None = None
        """Set when the worker is admitted, as `tunnels` is."""
        self.tunnels: WorkerTunnels | None = None
        self._registry = registry
        self._clock = clock
        self._call = call
        self._ack = ack
        self._inbox = inbox
        self._idle = idle
        self._last = last
        self._unroutable = unroutable

    def apply(self, encoded: bytes) -> bool:
        """Apply a report and acknowledge it, if nothing has to be waited for; False if not, and nothing was done then."""
        registration, tunnels = self.registration, self.tunnels
        if registration is None or tunnels is None or not self._inbox.awaited or not self._call.writable:
            return False
        rtt_ns = tunnels.settled_rtt_ns()
        if rtt_ns is None or registration.ended:
            return False
        if not self._last.is_repeated_by(encoded) and not self._take(encoded, registration):
            return False
        self._registry.apply(registration, self._last.models, connected=True, rtt_ns=rtt_ns, now=self._clock())
        self._unroutable.log(self._last.models, registration.identity.inference_server_id, without_rtt=False)
        self._call.write_now(self._ack)
        self._idle.wait_begins()
        return True

    def _take(self, encoded: bytes, registration: Registration) -> bool:
        """Read a report that is not that of before; False if it is to be refused, which is left to the stream."""
        try:
            message = self._last.decode(encoded)
            if message is not None:
                check_limits(message)
                check_unchanged(message, registration.identity)
        except (DecodeError, MessageLimitError, RefusedError):
            return False
        if message is not None:
            self._last.take(encoded, message)
            self._unroutable.report_changed()
        return True
