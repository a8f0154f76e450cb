"""The tunnels of one registration generation, from its admission to its end: the common part of reverse and direct tunnels.

`reverse_tunnels` and `direct_tunnels` add how connections are made. Both implement the ports `TunnelSet` and
`WorkerTunnels`. See docs/protocol.md, "Connection sets".
"""

import asyncio
from collections.abc import Callable

import structlog

from router.ports.identity import Identity
from router.ports.tunnels import ExchangeSink, TunnelError
from router.telemetry.metrics import Metrics
from router.tunnels.connection_slot import ConnectionSlot
from router.tunnels.exchange import StreamExchange
from router.tunnels.health import HealthMonitor
from router.tunnels.settings import TunnelSettings
from router.tunnels.tunnel import Tunnel
from tunnel_protocol.head import RequestHead

_log = structlog.get_logger()


class RegistrationTunnels:
    """One slot, its health monitor, and exchanges on its connections. Belongs to one registration and ends with it."""

    direct: bool

    def __init__(self, identity: Identity, settings: TunnelSettings, metrics: Metrics, *, grace_ms: int) -> None:
        self.identity = identity
        self.slot: ConnectionSlot[Tunnel] = ConnectionSlot(self._changed)
        self.health = HealthMonitor(identity.inference_server_id, self.slot, settings, metrics, grace_ms=grace_ms)
        self.settings = settings
        self._metrics = metrics
        self._loop_task: asyncio.Task[None] | None = None
        self._waiters: set[asyncio.Future[None]] = set()

    # --- TunnelSet ---------------------------------------------------------------------------------------------------

    def healthy(self) -> bool:
        """Whether any connection of the set is open."""
        return self.slot.healthy()

    def free_streams(self) -> int:
        """Number of streams that can be opened now without waiting, over all open connections."""
        return self.slot.free_streams()

    def silent_since(self) -> float | None:
        """Loop time since which nothing has come on any open connection; None if one is not silent, or none is open."""
        if not self.slot.suspected():
            return None
        return max(tunnel.silent_since for tunnel in self.slot.members if not tunnel.closed)

    def try_open(self, head: RequestHead, sink: ExchangeSink, *, end: bool) -> StreamExchange | None:
        """As `open`, without waiting: None if the next open connection has no free stream. Raises `TunnelError`."""
        return self._pick().try_open(head, sink, end=end)

    async def open(self, head: RequestHead, sink: ExchangeSink, *, end: bool) -> StreamExchange:
        """Open a stream on the next open connection and send the head (and FIN if `end`); raises `TunnelError`."""
        tunnel = self._pick()
        if not tunnel.free_streams:
            self._metrics.stream_credit_waits_total.inc()
        return await tunnel.open(head, sink, end=end)

    def _pick(self) -> Tunnel:
        tunnel = self.slot.pick()
        if tunnel is None:
            raise TunnelError(
                f"no connection for exact inference server registration '{self.identity.inference_server_id}'"
            )
        return tunnel

    # --- WorkerTunnels -----------------------------------------------------------------------------------------------

    def start(self, on_lost: Callable[[], None], on_recovered: Callable[[], None]) -> None:
        """Start the health loop; it calls `on_lost` and `on_recovered` alternately, `on_lost` first."""
        self.health.listen(on_lost, on_recovered)
        if not self.slot.retired:
            self._loop_task = asyncio.get_running_loop().create_task(self.health.run())
            self._loop_task.add_done_callback(self._health_loop_ended)

    def reported(self) -> None:
        """A message has arrived on the registration's stream; direct tunnels ignore it."""

    async def rtt_ns(self) -> int | None:
        """The latest round trip in nanoseconds, or if there is none that of a probe made now; None if the probe fails."""
        if self.health.rtt_ns is not None:
            return self.health.rtt_ns
        return await self.health.measure()

    def retire(self) -> None:
        """End with the registration: wake all waiters and cancel the health loop; running exchanges finish."""
        self.health.stop()
        if self._loop_task is not None:
            self._loop_task.cancel()
        for tunnel in self.slot.retire():
            tunnel.release()

    async def wait_retired(self) -> None:
        """Return once `retire` was called and the health loop has ended."""
        while not self.slot.retired:
            await self._next_change()
        if self._loop_task is not None:
            await asyncio.wait([self._loop_task])

    # -----------------------------------------------------------------------------------------------------------------

    async def _next_change(self) -> None:
        """Wait for the slot's next transition."""
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        try:
            await waiter
        finally:
            self._waiters.discard(waiter)

    def _changed(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    def _health_loop_ended(self, task: asyncio.Task[None]) -> None:
        if task.cancelled():
            return
        # Only a defect ends the loop; without probes the worker's figures become stale, so log the reason.
        _log.error(
            "health loop ended unexpectedly",
            inference_server_id=self.identity.inference_server_id,
            exc_info=task.exception(),
        )
