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
        """Start the health loop. `on_lost`: probes unanswered or the tunnel closed; `on_recovered`: a probe answered again.

        Both are called synchronously in the event loop, alternately, `on_lost` first; none is called after `retire`.
        """

    def reported(self) -> None:
        """A message has arrived on the registration's stream; called for each one, even while an update waits."""

    async def tunnel_step(self) -> TunnelStep:
        """Establish or await the tunnel, once per update; for a reverse worker the first call does not wait."""

    def settled_rtt_ns(self) -> int | None:
        """The latest round trip in nanoseconds if `tunnel_step` would return CONNECTED without a wait; None otherwise.

        With a round trip it stands for that call.
        """

    async def rtt_ns(self) -> int | None:
        """The latest round trip in nanoseconds, or if there is none that of a probe made now; None if the probe fails."""

    def retire(self) -> None:
        """End with the registration: wake all waiters and cancel the health loop; running exchanges finish."""

    async def wait_retired(self) -> None:
        """Return once `retire` was called and the health loop has ended."""


MakeTunnels = Callable[[Identity], WorkerTunnels]
