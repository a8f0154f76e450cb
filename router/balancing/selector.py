"""One routing decision: admission, the algorithm's choice and a backend, or the result without one.

Pure: the caller sleeps after a `Wait`, and keeps the failed backends and clusters of its request. See docs/balancing.md,
"One decision".
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from random import Random
from typing import Final, Protocol, TypeVar

from router.balancing.admission import rejection
from router.balancing.algorithm import Balancer, MakeAlgorithm, copy_of, may_take_of
from router.balancing.candidate import Candidate
from router.balancing.catalog import Catalog
from router.balancing.config import BalancingConfig
from router.balancing.config_error import ConfigError
from router.balancing.definition import Definition, build
from router.balancing.estimates import queue_estimate_ms
from router.balancing.expressions import ExpressionDefinition, Expressions, unavailable_method, unknown_method
from router.balancing.outcome import (
    AdmissionRejected,
    BackendT,
    Chosen,
    ClusterT,
    NotFound,
    Outcome,
    Unavailable,
    Wait,
)
from router.balancing.request import RoutingRequest
from router.balancing.settings import CURRENT, BalancingSettings

MAX_WAIT_MS: Final = 60_000
_SHORTEST_MS, _LONGEST_MS = 1, 9
LONGEST_SLEEP_S: Final = 0.025
"""Seconds after which a request that an algorithm lets wait is decided again at the latest, as clusters change meanwhile."""
_SHORTEST_SLEEP_S: Final = 0.0001

ClusterT_co = TypeVar("ClusterT_co", covariant=True)
BackendT_co = TypeVar("BackendT_co", covariant=True)


class TargetView(Protocol[ClusterT_co, BackendT_co]):
    """What the selector uses of a target (`router.registry.Target` implements it)."""

    balancer_state: dict[object, object]
    """State of the selector for this target, kept as long as the target exists."""

    def candidates(self) -> Sequence[Candidate]:
        """The current clusters."""

    def pick(self, cluster_id: str, excluded_backend_ids: Collection[str]) -> tuple[ClusterT_co, BackendT_co] | None:
        """The live cluster of a candidate and its next backend in round-robin order that is not excluded.

        None if there is no such cluster or backend.
        """


class TargetBalancer:
    """The value in `balancer_state`; the key is the definition."""

    __slots__ = ("balancer",)

    def __init__(self, balancer: Balancer) -> None:
        self.balancer = balancer


class Selector:
    """Holds the active policy. `replace_config` replaces all of it; a running request keeps its resolved definition."""

    def __init__(
        self,
        config: BalancingConfig,
        random: Random,
        plugins: Mapping[str, MakeAlgorithm] | None = None,
        settings: BalancingSettings = CURRENT,
    ) -> None:
        self._random = random
        self._catalog = Catalog(plugins, settings)
        self._config = config
        self.expressions = Expressions(self._catalog, random, self._configured) if settings.expressions else None
        """The expressions that the method header may hold; None if it holds only names."""
        self.replace_config(config)

    def replace_config(self, config: BalancingConfig) -> None:
        """Build every definition, then activate them. Raises `ConfigError` (stage `build`), and changes nothing then."""
        for key, definition in config.definitions():
            if key is not None and key != definition.algorithm:
                raise ConfigError(
                    f"request_algorithms key {key} does not match configured algorithm {definition.algorithm}", "build"
                )
            definition.built = build(definition, self._random, self._catalog)
        self._config = config
        if self.expressions is not None:
            self.expressions.clear()

    def algorithms(self) -> list[str]:
        """Canonical names of all algorithms."""
        return self._catalog.names()

    def knows(self, method: str) -> bool:
        """Whether a method header names a known algorithm, offered or not."""
        return self._catalog.from_header(method) is not None

    def resolve(self, model: str, method: str | None) -> Definition:
        """The definition for a request; `method` is the name of an algorithm. Raises `MethodError`."""
        if method is None:
            policy = self._config.models.get(model)
            return self._config.default if policy is None else policy.configured
        algorithm = self._catalog.from_header(method)
        if algorithm is None:
            raise unknown_method(method)
        found = self._configured(model, algorithm)
        if found is None:
            raise unavailable_method(algorithm)
        return found

    def in_force(self, routing_key: str | None, model: str, method: str | None) -> Definition:
        """As `resolve`, if `method` may also be an expression; does not change what is kept of them. Raises `MethodError`."""
        if method is None or self.expressions is None or ";" not in method:
            return self.resolve(model, method)
        return self.expressions.resolve(method.encode("utf-8", "surrogatepass"), routing_key, model)

    def _configured(self, model: str, algorithm: str) -> Definition | None:
        """The definition of an algorithm that the configuration offers for a model; None if it does not offer it."""
        config = self._config
        policy = config.models.get(model)
        configured = config.default if policy is None else policy.configured
        if algorithm == configured.algorithm:
            return configured
        if policy is not None and algorithm in policy.overrides:
            return policy.overrides[algorithm]
        return config.overrides.get(algorithm)

    def select(
        self,
        effective: Definition,
        request: RoutingRequest,
        target: TargetView[ClusterT, BackendT] | None,
        *,
        advertised: Callable[[], bool],
        failed_backends: set[str],
        failed_clusters: set[str],
        now: float,
    ) -> Outcome[ClusterT, BackendT]:
        """Decide once; `now` is monotonic seconds. Adds clusters that have no backend left to `failed_clusters`."""
        while True:
            candidates = () if target is None else target.candidates()
            if not candidates or target is None:
                if not failed_backends and not failed_clusters and not advertised():
                    return NotFound()
                return Unavailable()
            eligible = len(candidates)
            if failed_clusters:
                eligible = sum(candidate.cluster_id not in failed_clusters for candidate in candidates)
            limit = effective.max_input_work_seconds
            if eligible and limit is not None:
                reason = rejection(
                    admission_candidates(effective, request, candidates, failed_clusters),
                    request.input_tokens or 0,
                    limit,
                )
                if reason is not None:
                    return AdmissionRejected(reason)
            elapsed_ms = max(0.0, now - request.received_at) * 1000.0
            choice = self._balancer(effective, request, target).choose(request, candidates, failed_clusters, elapsed_ms)
            if choice is None:
                return self._no_choice(request, eligible, now)
            if isinstance(choice, Wait):
                return _sleep(choice, request, eligible, now)
            found = choice.candidate
            picked = target.pick(found.cluster_id, failed_backends)
            if picked is not None:
                cluster, backend = picked
                return Chosen(
                    found,
                    cluster,
                    backend,
                    choice.rank_depth,
                    choice.skipped_for_kv,
                    queue_estimate_ms(found, request.priority),
                )
            if found.cluster_id in failed_clusters:
                return Unavailable()  # an installed algorithm has chosen an excluded cluster
            failed_clusters.add(found.cluster_id)

    def dry_run_balancer(
        self, effective: Definition, request: RoutingRequest, target: TargetView[object, object]
    ) -> Balancer:
        """A balancer that decides as the target's own would now; its use does not affect later decisions."""
        kept = target.balancer_state.get(effective)
        if isinstance(kept, TargetBalancer):
            copied = copy_of(kept.balancer)
            if copied is not None:
                return copied
        rng = Random()  # noqa: S311 - nothing is kept secret by it
        return build(effective, rng, self._catalog).balancer(request.routing_key, request.model)

    def _balancer(self, effective: Definition, request: RoutingRequest, target: TargetView[object, object]) -> Balancer:
        kept = target.balancer_state.get(effective)
        if isinstance(kept, TargetBalancer):
            return kept.balancer
        # Definitions of earlier configurations are used only by requests that resolved them before the change.
        live = {definition for _, definition in self._config.definitions()}
        if self.expressions is not None:
            live.update(self.expressions.of_target(request.routing_key, request.model))
        for stale in [key for key in target.balancer_state if key not in live]:
            del target.balancer_state[stale]
        balancer = effective.built.balancer(request.routing_key, request.model)
        target.balancer_state[effective] = TargetBalancer(balancer)
        if isinstance(effective, ExpressionDefinition):
            effective.states = target.balancer_state
        return balancer

    def _no_choice(self, request: RoutingRequest, eligible: int, now: float) -> Wait | Unavailable:
        if eligible and request.max_wait_ms is not None:
            left = request.received_at + min(request.max_wait_ms, MAX_WAIT_MS) / 1000 - now
            if left > 0:
                return Wait(min(left, self._random.randint(_SHORTEST_MS, _LONGEST_MS) / 1000))
        return Unavailable(at_capacity=eligible > 0)


def _sleep(asked: Wait, request: RoutingRequest, eligible: int, now: float) -> Wait | Unavailable:
    """The part of a wait that an algorithm asked for until the next decision; it does not need `x-max-wait-ms`."""
    allowed_ms = MAX_WAIT_MS if request.max_wait_ms is None else min(request.max_wait_ms, MAX_WAIT_MS)
    left = request.received_at + allowed_ms / 1000 - now
    if not eligible or left <= 0:
        return Unavailable(at_capacity=eligible > 0)
    # A shorter sleep than the clock can tell apart would repeat the decision at the same age.
    return Wait(min(max(asked.seconds, _SHORTEST_SLEEP_S), LONGEST_SLEEP_S, left), left * 1000)


def admission_candidates(
    effective: Definition, request: RoutingRequest, candidates: Sequence[Candidate], failed_clusters: set[str]
) -> list[Candidate]:
    """The candidates whose queue and rate count for admission: not failed, and possible choices of the algorithm."""
    left = [candidate for candidate in candidates if candidate.cluster_id not in failed_clusters]
    may_take = may_take_of(effective.built)
    return left if may_take is None else [candidate for candidate in left if may_take(request, candidate)]
