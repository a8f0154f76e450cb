"""What a key may do: its rights to routing keys and models, its limits, its priority."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from router.openai.limits.limit_set import NO_LIMITS, LimitScope, LimitSet

ANY: Final = "*"


class Names:
    """A set of names, each exact or, with `*` at its end, a beginning."""

    __slots__ = ("_beginnings", "_exact")

    def __init__(self, names: Iterable[str], exact: Iterable[str] = ()) -> None:
        """`exact` are names in which a `*` at the end is one."""
        names = tuple(names)
        self._exact = frozenset((*exact, *(name for name in names if not name.endswith(ANY))))
        self._beginnings = tuple(name.removesuffix(ANY) for name in names if name.endswith(ANY))

    def __contains__(self, name: str) -> bool:
        return name in self._exact or name.startswith(self._beginnings)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GrantedCaller:
    """A `Caller` with the rights that were given to its key. Immutable, and equal to itself only: a reload makes new ones."""

    key_id: str
    priority: int | None = None
    routing_keys: Names | None = None
    """The routing keys it may name, the empty one for models without; None: all."""
    models: Names | None = None
    """None: all."""
    expires_at: float | None = None
    """POSIX time from which on the key is refused; None: never."""
    limits: LimitSet = NO_LIMITS
    """Over all models."""
    model_limits: Mapping[str, LimitSet] = field(default_factory=dict)
    """For each model by itself; `*` is for those not named."""
    routing_methods: Mapping[str, str] = field(default_factory=dict)
    """By model; models that are not in it are routed by the router's default."""
    scope: str = ""
    """Name of what `limits` count together; the key id if empty. Two keys of one account share it."""

    def may_use(self, routing_key: str | None, model: str) -> bool:
        """Whether it has the right to a target."""
        if self.routing_keys is not None and (routing_key or "") not in self.routing_keys:
            return False
        return self.models is None or model in self.models

    def routing_method(self, model: str) -> str | None:
        """The routing method for a model; None: the router's default."""
        return self.routing_methods.get(model)

    def limit_scopes(self, routing_key: str | None, model: str) -> tuple[LimitScope, ...]:
        """The limits for a request for a target: those of the key, and those of the key for this model."""
        owner = self.owner
        found: tuple[LimitScope, ...] = ()
        if self.limits:
            found = (LimitScope(owner, self.limits, "this API key"),)
        one = self.model_limits.get(model) or self.model_limits.get(ANY)
        if one:
            # The length keeps the names of (a, b/c) and (a/b, c) apart.
            scoped = routing_key or ""
            name = f"{owner}:model:{len(scoped)}:{scoped}/{model}"
            found = (*found, LimitScope(name, one, f"this API key and the model `{model}`"))
        return found

    @property
    def limited(self) -> bool:
        """Whether it has any limits."""
        if self.limits is NO_LIMITS:
            return bool(self.model_limits)  # nearly always
        return bool(self.limits or self.model_limits)

    @property
    def owner(self) -> str:
        """Common beginning of the names of all its scopes."""
        return self.scope or f"key:{self.key_id}"
