"""The running router: the parts that the drain uses, and the drain itself (docs/operations.md, "Start and end")."""

import asyncio
from contextlib import AsyncExitStack
from dataclasses import dataclass

from router.control_plane.service import ControlPlane
from router.grpc.server import GrpcServer
from router.http1.server import HttpServer
from router.operators.server import OperatorsServer
from router.process.critical_tasks import CriticalTasks
from router.process.shared_ports import SharedGrpcServer
from router.process.warm_up import WarmUpTimer
from router.telemetry.metrics import Metrics
from router.tunnels.dialer import DirectDialer
from router.tunnels.listener import ReverseListener

_LAST_STEP_S = 2.0
"""Seconds that the last steps of a drain may take after the running requests; they wait only for the event loop."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Router:
    """One serving router; created by `app.start`. `tasks.failed` is set when a critical task ends by itself."""

    tasks: CriticalTasks
    metrics: Metrics
    servers: tuple[HttpServer, ...]
    """The HTTP ports of clients."""
    operators: OperatorsServer
    control_plane: ControlPlane
    grpc: tuple[GrpcServer | SharedGrpcServer, ...]
    listener: ReverseListener | None
    """None in direct mode."""
    dialer: DirectDialer
    warm_up: WarmUpTimer
    lame_duck_s: float
    """Seconds that the HTTP port stays open after the begin of a drain."""
    opened: AsyncExitStack
    """Closes all parts, in the reverse order of their start."""

    async def drain(self, budget_s: float) -> bool:
        """Let running requests finish within `budget_s` seconds, then end everything. False if some were still running.

        Raises `TimeoutError` if the last steps take too long.
        """
        self.tasks.begin_stopping()
        self.warm_up.stop()
        self.metrics.draining.set(1)
        deadline = asyncio.get_running_loop().time() + budget_s
        if self.listener is not None:
            self.listener.stop_accepting()
        ending = [asyncio.create_task(server.stop(budget_s + _LAST_STEP_S)) for server in self.grpc]
        lame_duck_s = min(self.lame_duck_s, budget_s)
        if not lame_duck_s:
            self.operators.stop()
        drained = await asyncio.gather(*(server.drain(budget_s, lame_duck_s) for server in self.servers))
        if not all(drained):
            return False
        for tunnels in (self.listener, self.dialer):
            if tunnels is not None:
                tunnels.begin_shutdown()
        # Workers close their tunnels soon after their registration or watch stream ends, so these streams end last.
        self.control_plane.stop()
        self.tasks.cancel_loops()
        self.operators.stop()
        async with asyncio.timeout_at(deadline + _LAST_STEP_S):
            await asyncio.gather(*ending)
            await self.opened.aclose()
        return True

    def unfinished(self) -> list[str]:
        """What is still running, for the log of a drain that took too long."""
        return [*self.tasks.unfinished(), f"{sum(server.in_flight for server in self.servers)} requests"]
