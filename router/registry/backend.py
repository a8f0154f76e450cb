"""One routable worker of one target. Source: docs/control-plane.md, "What is routable"."""

from router.registry.registration import Registration
from router.registry.stats import ModelStats


class Backend:
    """What one registration has published for one target; its next message replaces the whole object."""

    __slots__ = ("received_at", "registration", "rtt_ns", "stats")

    def __init__(self, registration: Registration, stats: ModelStats, rtt_ns: int, received_at: float) -> None:
        self.registration = registration
        self.stats = stats
        self.rtt_ns = rtt_ns
        """Round trip of the health probe through the tunnel in nanoseconds; 0 is valid."""
        self.received_at = received_at
        """Monotonic seconds at which the update was applied."""

    @property
    def inference_server_id(self) -> str:
        """The worker's id."""
        return self.registration.identity.inference_server_id

    @property
    def inference_server_url(self) -> str:
        """The worker's URL as registered."""
        return self.registration.identity.url

    @property
    def cluster_id(self) -> str:
        """The worker's effective cluster."""
        return self.registration.identity.cluster_id
