"""The registration streams of this process: what they share, and which of them holds which id."""

from collections.abc import Callable
from typing import Protocol

from router.control_plane.id_claim import HolderLiveness
from router.control_plane.settings import ControlPlaneSettings
from router.ports.registration_tunnels import MakeTunnels
from router.registry.registry import Registry
from router.telemetry.metrics import Metrics
from tunnel_protocol.control.stargate_pb2 import InferenceServerAck


class Holder(Protocol):
    """A stream that may hold an id; see `RegistrationStream`."""

    routing_key: str | None
    liveness: HolderLiveness
    peer: str

    async def yields(self) -> bool:
        """Wait until this holder of an id is known to be alive (False), or to be dead or ended (True)."""

    def stop(self, reason: str) -> None:
        """End the stream with OK: its routes and id are free when this returns."""


class RegistrationTable:
    """The registration streams of this process: what they share, and which of them holds which id."""

    def __init__(
        self,
        registry: Registry,
        make_tunnels: MakeTunnels,
        settings: ControlPlaneSettings,
        metrics: Metrics,
        *,
        clock: Callable[[], float],
    ) -> None:
        self.registry = registry
        self.make_tunnels = make_tunnels
        self.settings = settings
        self.clock = clock
        self.open: set[Holder] = set()
        self.holders: dict[str, Holder] = {}
        dial_addr = settings.reverse_tunnel_dial_addr.strip() or settings.reverse_tunnel_target
        ack = InferenceServerAck(
            reverse_tunnel_target=settings.reverse_tunnel_target,
            reverse_tunnel_pylon_dial_addr=dial_addr if settings.reverse_tunnel_target else "",
        )
        self.ack: bytes = ack.SerializeToString()
        self._metrics = metrics

    def hold(self, inference_server_id: str, stream: Holder) -> None:
        """From now on `stream` holds the id."""
        self.holders[inference_server_id] = stream
        self._metrics.registered_streams.set(len(self.holders), ())

    def release(self, inference_server_id: str) -> None:
        """No stream holds the id any more."""
        del self.holders[inference_server_id]
        self._metrics.registered_streams.set(len(self.holders), ())
