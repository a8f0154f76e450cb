"""The port through which the control plane drives one registration's tunnels; `router/tunnels` implements it.

Source: docs/control-plane.md, "One update" and "Loss of a worker".
"""

from collections.abc import Callable
from typing import Protocol

from router.ports.identity import Identity
from router.ports.tunnels import TunnelSet, TunnelStep

__all__ = ["MakeTunnels", "TunnelStep", "WorkerTunnels"]


class WorkerTunnels(TunnelSet, Protocol):
    """The tunnels of one registration generation, from its admission to its end."""

    def start(self, on_lost: Callable[[], None], on_recovered: Callable[[], None]) -> None:
        """Begin the health loop. `on_lost`: missed probes or the tunnel closed; `on_recovered`: a probe works again.

        Both are called synchronously from the event loop, alternately, `on_lost` first; neither after `retire`.
        """

    def reported(self) -> None:
        """A message has arrived on the registration's stream; called for each, whether an update waits or not."""

    async def tunnel_step(self) -> TunnelStep:
        """Establish or await the tunnel, once per update; the first call of a reverse worker never waits."""

    async def rtt_ns(self) -> int | None:
        """The health loop's latest round trip in nanoseconds, or one probe's; None if that fails."""

    def retire(self) -> None:
        """The registration is over: waiters wake, the health loop is cancelled; running exchanges finish."""

    async def wait_retired(self) -> None:
        """Return once `retire` was called and the health loop has ended."""


MakeTunnels = Callable[[Identity], WorkerTunnels]
