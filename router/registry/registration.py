"""One live registration and the cluster generation it belongs to.

Both are compared by object identity: an id may be used again, a generation is not (docs/control-plane.md, "Generations").
"""

from router.ports.identity import Identity
from router.ports.tunnels import TunnelSet


class ClusterGeneration:
    """One generation of (routing key, cluster id): from its first registration to the end of its last."""

    __slots__ = ("registrations", "retired")

    def __init__(self) -> None:
        self.registrations = 0
        """Number of live registrations that share it."""
        self.retired = False
        """True once that number has fallen to 0; no request is routed to this generation again."""


class Registration:
    """One admitted registration stream: created by `Registry.begin`, ended by `Registry.end`."""

    __slots__ = ("answer_fields", "applying", "ended", "generation", "identity", "models", "tunnels")

    def __init__(self, identity: Identity, tunnels: TunnelSet, generation: ClusterGeneration) -> None:
        self.identity = identity
        self.tunnels = tunnels
        """The connections of exactly this registration."""
        self.generation = generation
        self.models: frozenset[str] = frozenset()
        """The models it advertises, active or not; while an update is being applied, also those of the previous one."""
        self.applying = False
        self.ended = False
        self.answer_fields: list[tuple[bytes, bytes]] | None = None
        """The fields of its answers that name it to clients; made by the proxy at the first of them."""


class AlreadyRegisteredError(Exception):
    """A live registration holds this id; `existing` is that registration."""

    def __init__(self, existing: Registration) -> None:
        super().__init__(f"inference_server_id '{existing.identity.inference_server_id}' is already registered")
        self.existing = existing
