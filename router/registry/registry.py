"""Which workers are registered and what they can serve now. Pure memory: no I/O, no clock, no suspension point.

Every method is synchronous, so other callbacks of the event loop see either the whole of a change or nothing of it.
Source: docs/control-plane.md, "Registrations" and "What is routable".
"""

from collections.abc import Callable, Collection, Mapping

from router.ports.identity import Identity
from router.ports.tunnels import TunnelSet
from router.registry.backend import Backend
from router.registry.registration import AlreadyRegisteredError, ClusterGeneration, Registration
from router.registry.settings import CURRENT, RegistrySettings
from router.registry.stats import ModelUpdate
from router.registry.target import Target, TargetKey


class Registry:
    """All live registrations of this process and the targets their workers serve."""

    def __init__(
        self,
        on_active_count: Callable[[TargetKey, int], None] | None = None,
        settings: RegistrySettings = CURRENT,
    ) -> None:
        """`on_active_count` is called with the number of routable workers of a target whenever that number changes."""
        self._on_active_count = on_active_count
        self._settings = settings
        self._registrations: dict[str, Registration] = {}
        self._generations: dict[tuple[str | None, str], ClusterGeneration] = {}
        self._advertisers: dict[TargetKey, int] = {}
        self._targets: dict[TargetKey, Target] = {}
        # For listing: the routable models by routing key, so that no walk over all targets is needed.
        self._models: dict[str | None, set[str]] = {}

    # Registrations

    def begin(self, identity: Identity, tunnels: TunnelSet) -> Registration:
        """Admit a worker; it is routable only after `apply`. Raises `AlreadyRegisteredError` while its id is live."""
        existing = self._registrations.get(identity.inference_server_id)
        if existing is not None:
            raise AlreadyRegisteredError(existing)
        scope = (identity.routing_key, identity.cluster_id)
        generation = self._generations.get(scope)
        if generation is None:
            generation = self._generations[scope] = ClusterGeneration()
        generation.registrations += 1
        registration = Registration(identity, tunnels, generation)
        self._registrations[identity.inference_server_id] = registration
        return registration

    def apply(
        self,
        registration: Registration,
        models: Mapping[str, ModelUpdate],
        *,
        connected: bool,
        rtt_ns: int | None,
        now: float,
    ) -> None:
        """Apply one complete report: `models` are all models the worker advertises from now on.

        A model is routable exactly if the worker reports it as active and with stats, its tunnel is `connected` and its
        round trip is known (`rtt_ns`, nanoseconds). `now` is monotonic seconds. No effect for a registration that has ended.
        Raises RuntimeError if called while the same registration's previous report is still being applied.
        """
        if registration.ended:
            return
        if registration.applying:
            raise RuntimeError("updates of one registration must not overlap")
        registration.applying = True
        try:
            self._apply(registration, models, rtt_ns if connected else None, now)
        finally:
            registration.applying = False

    def withdraw(self, registration: Registration) -> None:
        """Remove a worker whose tunnel is dead from routing; it stays registered and its models stay advertised."""
        for model in registration.models:
            self._withdraw(registration, TargetKey(registration.identity.routing_key, model))

    def end(self, registration: Registration) -> None:
        """End a registration: its id becomes free and its routes are removed. No effect if it has ended already."""
        if registration.ended:
            return
        registration.ended = True
        identity = registration.identity
        del self._registrations[identity.inference_server_id]
        self._count_advertisers(registration, registration.models, -1)
        generation = registration.generation
        generation.registrations -= 1
        if not generation.registrations:
            generation.retired = True
            del self._generations[(identity.routing_key, identity.cluster_id)]
        self.withdraw(registration)

    def live(self, inference_server_id: str) -> Registration | None:
        """The live registration of this id; None if there is none."""
        return self._registrations.get(inference_server_id)

    def registrations(self) -> list[Registration]:
        """All live registrations, the oldest first."""
        return list(self._registrations.values())

    # Targets

    def target(self, key: TargetKey) -> Target | None:
        """The target; None if no worker is routable for it."""
        return self._targets.get(key)

    def targets(self) -> list[Target]:
        """All targets that have a routable worker."""
        return list(self._targets.values())

    def is_advertised(self, key: TargetKey) -> bool:
        """Whether any live registration advertises the model, routable or not."""
        return key in self._advertisers

    def active_models(self, routing_key: str | None, model_ids: Collection[str] = ()) -> list[str]:
        """Routable models of exactly this routing key, ascending; only those in `model_ids` unless that is empty."""
        models = self._models.get(routing_key, set())
        return sorted(models.intersection(model_ids) if model_ids else models)

    def all_active_models(self) -> list[str]:
        """Routable models of all routing keys, each once, ascending."""
        return sorted(set().union(*self._models.values()))

    # Steps

    def _apply(
        self, registration: Registration, models: Mapping[str, ModelUpdate], rtt_ns: int | None, now: float
    ) -> None:
        previous = registration.models
        advertised = previous
        if models.keys() != previous:
            advertised = frozenset(models)
            self._count_advertisers(registration, previous - advertised, -1)
            self._count_advertisers(registration, advertised - previous, 1)
            registration.models = previous | advertised
        routing_key = registration.identity.routing_key
        for model in previous - advertised:
            self._withdraw(registration, TargetKey(routing_key, model))
        for model, update in models.items():
            if registration.ended:
                return
            key = TargetKey(routing_key, model)
            if update.active and update.stats is not None and rtt_ns is not None:
                self._publish(key, Backend(registration, update.stats, rtt_ns, now))
            else:
                self._withdraw(registration, key)
        registration.models = advertised

    def _count_advertisers(self, registration: Registration, models: Collection[str], change: int) -> None:
        for model in models:
            key = TargetKey(registration.identity.routing_key, model)
            count = self._advertisers.get(key, 0) + change
            if count:
                self._advertisers[key] = count
            else:
                del self._advertisers[key]

    def _publish(self, key: TargetKey, backend: Backend) -> None:
        target = self._targets.get(key)
        if target is None:
            target = self._targets[key] = Target(key, self._settings)
            self._models.setdefault(key.routing_key, set()).add(key.model)
        before = target.active_count
        target.publish(backend)
        if target.active_count != before:
            self._tell(target)

    def _withdraw(self, registration: Registration, key: TargetKey) -> None:
        target = self._targets.get(key)
        if target is None:
            return
        before = target.active_count
        target.withdraw(registration)
        if not target.active_count:
            target.retired = True
            del self._targets[key]
            models = self._models[key.routing_key]
            models.remove(key.model)
            if not models:
                del self._models[key.routing_key]
        if target.active_count != before:
            self._tell(target)

    def _tell(self, target: Target) -> None:
        if self._on_active_count is not None:
            self._on_active_count(target.key, target.active_count)
