"""The warm-up of a new router: `/readyz` stays 503 until workers had the time to register.

A router that is ready at once gets requests before any worker has found it, and answers them with 404. So it may wait for a
fixed time, and for less if the number of workers it can route to stops changing. Nothing else waits: registrations, tunnels,
requests and discovery work from the start. See docs/operations.md, "Readiness".
"""

import asyncio
import enum
from collections.abc import Callable

import structlog

from router.registry import Registry

_log = structlog.get_logger()


def active_backends(registry: Registry) -> int:
    """The routable workers of all targets; a worker counts once for each model it can serve now."""
    return sum(target.active_count for target in registry.targets())


class WarmUpState(enum.Enum):
    """Whether the warm-up lasts, or how it ended."""

    WARMING = enum.auto()
    STABLE = enum.auto()
    """The number of workers did not change for the whole window."""
    ELAPSED = enum.auto()
    """The time is over, whatever the number of workers, or there was no warm-up."""
    ABANDONED = enum.auto()
    """The router shut down before."""


class WarmUp:
    """When the warm-up ends, without I/O: `on_time` is called at `due` with the time and the number of workers.

    The first sample is taken one interval after the start, and a late one is not made up for. `stable_samples` counts samples
    that equal the one before and are not 0; a change, or a sample of 0, sets it to 0.
    """

    def __init__(self, *, warm_up_ms: int, sample_interval_ms: int, window: int, now: float) -> None:
        """`warm_up_ms` 0 is no warm-up; `window` is the `stable_samples` that end it. `now` is monotonic seconds."""
        self.warm_up_ms = warm_up_ms
        self.state = WarmUpState.WARMING if warm_up_ms else WarmUpState.ELAPSED
        self.stable_samples = 0
        self.active_backends: int | None = None
        """The last sample; None before the first."""
        self._window = window
        self._interval_s = sample_interval_ms / 1000
        self._ends_at = now + warm_up_ms / 1000
        self._next_sample_at = now + self._interval_s

    @property
    def ready(self) -> bool:
        """Whether the warm-up is over; never again False, and never True after `abandon`."""
        return self.state in (WarmUpState.STABLE, WarmUpState.ELAPSED)

    @property
    def due(self) -> float | None:
        """When `on_time` is to be called; None after the end."""
        return min(self._ends_at, self._next_sample_at) if self.state is WarmUpState.WARMING else None

    def on_time(self, now: float, count_backends: Callable[[], int]) -> None:
        """End the warm-up if it is over, else take a sample if one is due; a call before `due` changes nothing."""
        if self.state is not WarmUpState.WARMING:
            return
        if now >= self._ends_at:
            self.state = WarmUpState.ELAPSED
        elif now >= self._next_sample_at:
            self._next_sample_at = now + self._interval_s
            self._sample(count_backends())

    def abandon(self) -> None:
        """The router shuts down: a warm-up that lasts never ends with readiness."""
        if self.state is WarmUpState.WARMING:
            self.state = WarmUpState.ABANDONED

    def _sample(self, count: int) -> None:
        unchanged = count > 0 and count == self.active_backends
        self.stable_samples = self.stable_samples + 1 if unchanged else 0
        self.active_backends = count
        if self.stable_samples >= self._window:
            self.state = WarmUpState.STABLE


class WarmUpTimer:
    """Calls a `WarmUp` when it is due, and logs its end."""

    def __init__(self, warm_up: WarmUp, count_backends: Callable[[], int], on_ready: Callable[[], None]) -> None:
        """`on_ready` is called once: by `start` if there is no warm-up, else at its end."""
        self._warm_up = warm_up
        self._count_backends = count_backends
        self._on_ready = on_ready
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Start on the running event loop, whose clock is that of the `WarmUp`."""
        if self._warm_up.ready:
            self._on_ready()
        self._arm()

    def stop(self) -> None:
        """End a warm-up that lasts, without readiness."""
        self._warm_up.abandon()
        if self._timer is not None:
            self._timer.cancel()

    def warming(self) -> bool:
        """Whether the router is not ready because of the warm-up."""
        return not self._warm_up.ready

    @property
    def state(self) -> WarmUpState:
        """Whether the warm-up lasts, or how it ended."""
        return self._warm_up.state

    def _on_due(self) -> None:
        warm_up = self._warm_up
        warm_up.on_time(asyncio.get_running_loop().time(), self._count_backends)
        if warm_up.state is WarmUpState.STABLE:
            _log.info(
                "backend count stabilized; promoting replica to ready before warmup window elapses",
                active_backends=warm_up.active_backends,
                stable_samples=warm_up.stable_samples,
            )
        elif warm_up.state is WarmUpState.ELAPSED:
            _log.info("readiness warmup window elapsed; promoting replica to ready", warmup_ms=warm_up.warm_up_ms)
        if warm_up.ready:
            self._on_ready()
        self._arm()

    def _arm(self) -> None:
        due = self._warm_up.due
        if due is not None:
            self._timer = asyncio.get_running_loop().call_at(due, self._on_due)
