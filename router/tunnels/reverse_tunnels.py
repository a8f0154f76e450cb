"""The tunnel of an inference server that dials the router; installed by the reverse listener.

See docs/protocol.md, "Reverse handshake", and docs/control-plane.md, "One update".
"""

import asyncio

import structlog

from router.ports.identity import Identity
from router.ports.tunnels import TunnelError, TunnelStep
from router.telemetry.metrics import Metrics
from router.tunnels.connection_slot import InstallPermit
from router.tunnels.settings import TunnelSettings
from router.tunnels.tunnel import Tunnel
from router.tunnels.worker_tunnels import RegistrationTunnels

_log = structlog.get_logger()


class ReverseTunnels(RegistrationTunnels):
    """At most one connection, which the worker dials."""

    direct = False

    def __init__(self, identity: Identity, settings: TunnelSettings, metrics: Metrics) -> None:
        super().__init__(identity, settings, metrics, grace_ms=0)
        self._endpoint_advertised = False
        self._reported_at = float("-inf")

    # --- called by the listener --------------------------------------------------------------------------------------

    def begin_install(self) -> InstallPermit | None:
        """Permit the installation of a connection; None if the worker has a healthy one or is installing one.

        A silent connection is replaced only if the worker has reported since the silence began. A worker that sends no
        reports does not dial either: the new connection then comes from another host that uses its id.
        """
        if self.slot.suspected() and not all(tunnel.silent_since < self._reported_at for tunnel in self.slot.members):
            return None
        return self.slot.begin_install()

    def complete_install(self, install: InstallPermit, tunnel: Tunnel) -> bool:
        """Make `tunnel` this worker's connection. False if the permit is no longer valid."""
        displaced = self.slot.complete_install(install, tunnel)
        if displaced is None:
            return False
        for old in displaced:
            old.release()
        return True

    def connection_closed(self, tunnel: Tunnel) -> None:
        """An installed connection closed; no effect if it has been replaced."""
        if self.slot.reverse_closed(tunnel):
            _log.warning(
                "reverse tunnel connection closed, removed from pool",
                inference_server_id=self.identity.inference_server_id,
            )
            self.health.connection_closed()

    # --- WorkerTunnels -----------------------------------------------------------------------------------------------

    def reported(self) -> None:
        """A message has arrived on the registration's stream, so the worker is alive even if its connection is silent."""
        self._reported_at = asyncio.get_running_loop().time()

    def settled_rtt_ns(self) -> int | None:
        """The latest round trip, if the connection is open and its address was told to the worker."""
        return self.health.rtt_ns if self._endpoint_advertised and self.slot.healthy() else None

    async def tunnel_step(self) -> TunnelStep:
        """Wait for the worker to dial. The first call does not wait, so that the worker gets the dial address at once."""
        if not self._endpoint_advertised:
            self._endpoint_advertised = True
            return TunnelStep.REVERSE_DISCONNECTED
        if self.slot.healthy():
            return TunnelStep.CONNECTED
        try:
            async with asyncio.timeout(self.settings.reverse_connect_timeout_ms / 1000):
                while not self.slot.healthy():
                    if self.slot.retired:
                        return TunnelStep.REVERSE_DISCONNECTED
                    await self._next_change()
        except TimeoutError:
            _log.error(
                "reverse tunnel connection not received within timeout",
                inference_server_id=self.identity.inference_server_id,
                timeout_secs=_seconds(self.settings.reverse_connect_timeout_ms),
            )
            return TunnelStep.REVERSE_DISCONNECTED
        return TunnelStep.CONNECTED

    async def reconnect(self) -> None:
        """A reverse worker cannot be dialled: always raises `TunnelError`."""
        raise TunnelError(f"inference server '{self.identity.inference_server_id}' is not dialled by the router")


def _seconds(milliseconds: int) -> float | int:
    """Milliseconds as seconds; an int if whole, for the format of the log line."""
    return milliseconds / 1000 if milliseconds % 1000 else milliseconds // 1000
