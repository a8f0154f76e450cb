"""The connection set of an inference server that the router dials; it is dialled and replaced as a whole.

See docs/protocol.md, "Connection sets".
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from enum import Enum, auto

import structlog

from router.ports.identity import Identity
from router.ports.tunnels import TunnelError, TunnelStep
from router.telemetry.metrics import Metrics
from router.tunnels.settings import TunnelSettings
from router.tunnels.tunnel import Tunnel
from router.tunnels.worker_tunnels import RegistrationTunnels

_log = structlog.get_logger()

DialSet = Callable[["DirectTunnels"], Awaitable[list[Tunnel]]]
"""Dials a complete set of connections for a registration; raises `TunnelError` if any of them fails."""


class _Reach(Enum):
    INITIAL = auto()
    CONNECTED = auto()
    RECOVERING = auto()
    UNAVAILABLE = auto()


class DirectTunnels(RegistrationTunnels):
    """As many connections as configured; dialled at an update that finds none open, and when an attempt calls `reconnect`."""

    direct = True

    def __init__(
        self,
        identity: Identity,
        settings: TunnelSettings,
        metrics: Metrics,
        dial: DialSet,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(identity, settings, metrics, grace_ms=settings.direct_grace_ms)
        self._dial = dial
        self._clock = clock
        self._dialing: asyncio.Task[None] | None = None
        self._reach = _Reach.INITIAL
        self._recovering_since = 0.0

    def connection_closed(self, tunnel: Tunnel) -> None:
        """A connection closed; it stays recorded as closed until the set is replaced."""
        if any(tunnel is member for member in self.slot.members):
            self.health.connection_closed()

    async def reconnect(self) -> None:
        """Dial a new set and replace the old one; streams that are open on the old one continue.

        Concurrent callers share one dial, which goes on if one of them is cancelled. Raises `TunnelError`; the old set is
        then kept.
        """
        if self.slot.retired:
            raise TunnelError(self._retired_text())
        dialing = self._dialing
        if dialing is None:
            dialing = self._dialing = asyncio.get_running_loop().create_task(self._replace_set())
            dialing.add_done_callback(self._dialed)
        try:
            await asyncio.shield(dialing)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if dialing.cancelled() and task is not None and not task.cancelling():
                raise TunnelError(self._retired_text()) from None
            raise

    def settled_rtt_ns(self) -> int | None:
        """The latest round trip, if the set is complete."""
        if self.slot.retired or not self.slot.healthy() or self.slot.needs_replenishing():
            return None
        self._reach = _Reach.CONNECTED
        return self.health.rtt_ns

    async def tunnel_step(self) -> TunnelStep:
        """Dial if no connection is open; replenish a set in which one has closed."""
        if self.slot.healthy():
            self._reach = _Reach.CONNECTED
            if self.slot.needs_replenishing():
                try:
                    await self.reconnect()
                except TunnelError as error:
                    self._warn("failed to replenish direct tunnel connection set", error)
            return TunnelStep.UNAVAILABLE if self.slot.retired else TunnelStep.CONNECTED
        try:
            await self.reconnect()
        except TunnelError as error:
            if self.slot.retired:
                return TunnelStep.UNAVAILABLE
            self._warn("quic preconnect failed", error)
            return self._unreachable()
        self._reach = _Reach.CONNECTED
        return TunnelStep.CONNECTED

    def retire(self) -> None:
        """End the set with its registration; also cancels a running dial."""
        super().retire()
        if self._dialing is not None:
            self._dialing.cancel()

    async def wait_retired(self) -> None:
        """Return once `retire` was called, and the health loop and any dial have ended."""
        await super().wait_retired()
        if self._dialing is not None:
            await asyncio.wait([self._dialing])

    def _unreachable(self) -> TunnelStep:
        now = self._clock()
        if self._reach is _Reach.CONNECTED:
            self._reach = _Reach.RECOVERING
            self._recovering_since = now
            return TunnelStep.CONNECTED
        if self._reach is _Reach.RECOVERING and now - self._recovering_since < self.settings.direct_grace_ms / 1000:
            return TunnelStep.CONNECTED
        self._reach = _Reach.UNAVAILABLE
        return TunnelStep.UNAVAILABLE

    async def _replace_set(self) -> None:
        tunnels = await self._dial(self)
        displaced = self.slot.replace_all(tunnels)
        if displaced is None:
            for tunnel in tunnels:
                tunnel.release()
            raise TunnelError(self._retired_text())
        for tunnel in displaced:
            tunnel.release()

    def _dialed(self, task: asyncio.Task[None]) -> None:
        self._dialing = None
        if not task.cancelled():
            task.exception()  # retrieved, or asyncio would log it: all callers may have been cancelled

    def _retired_text(self) -> str:
        return f"no connection for exact inference server registration '{self.identity.inference_server_id}'"

    def _warn(self, message: str, error: TunnelError) -> None:
        _log.warning(
            message,
            inference_server_id=self.identity.inference_server_id,
            inference_server_url=self.identity.url,
            error=error.reason,
        )
