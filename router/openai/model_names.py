"""Finds the target that a client's model name means, and remembers which targets were served.

Many ids have slashes, so the whole name is looked for first: as a model without a routing key, then under the default routing
key, then as `<routing key>/<model>`, then as an alias.
"""

import re
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from router.registry import Registry, TargetKey, target_key
from tunnel_protocol.limit import Limit

KNOWN: Final = Limit("openai.known_targets", pieces=10_000)
"""Targets whose first registration is remembered; beyond it the one that changed longest ago is forgotten."""

SEEN_S: Final = 300.0
"""How long after its last worker a target counts as one that will come back."""

_UUID: Final = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}").fullmatch


class Known(NamedTuple):
    """What is remembered of a target."""

    created: int
    """POSIX seconds of its first worker."""
    gone_at: float
    """Monotonic seconds at which its last worker went; negative while it has one."""


class KnownTargets:
    """Targets that have or had workers; told by the registry."""

    def __init__(self, clock: Callable[[], float], wall: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._wall = wall
        self._found: OrderedDict[TargetKey, Known] = OrderedDict()

    def __len__(self) -> int:
        return len(self._found)

    def note(self, key: TargetKey, workers: int) -> None:
        """The number of workers of a target has changed."""
        before = self._found.pop(key, None)
        created = int(self._wall()) if before is None else before.created
        self._found[key] = Known(created, -1.0 if workers else self._clock())
        if len(self._found) > (KNOWN.pieces or 0):
            self._found.popitem(last=False)

    def created(self, key: TargetKey) -> int:
        """POSIX seconds of the first worker of a target."""
        found = self._found.get(key)
        return int(self._wall()) if found is None else found.created

    def was_served(self, key: TargetKey) -> bool:
        """Whether a target without workers had some within the last `SEEN_S` seconds."""
        found = self._found.get(key)
        return found is not None and (found.gone_at < 0 or self._clock() - found.gone_at < SEEN_S)


class ModelNames:
    """Resolves names against the registry as it is at each call."""

    def __init__(
        self,
        registry: Registry,
        known: KnownTargets,
        *,
        default_routing_key: str | None,
        aliases: tuple[tuple[str, str], ...],
    ) -> None:
        self._registry = registry
        self._known = known
        self._default = default_routing_key
        self._aliases = dict(aliases)

    def find(self, name: str) -> TargetKey | None:
        """The target of a name; None if there is none, nor was one lately."""
        registry = self._registry
        plain = target_key(None, name)
        if registry.target(plain) is not None:
            return plain  # the first meaning, and nearly always the one
        for key in self._meanings(name):
            if registry.target(key) is not None or registry.is_advertised(key):
                return key
        for key in self._meanings(name):
            if self._known.was_served(key):
                return key
        return None

    def _meanings(self, name: str) -> Iterator[TargetKey]:
        """What a name can mean, the first one first."""
        yield from self._without_alias(name)
        alias = self._aliases.get(name)
        if alias is not None:
            yield from self._without_alias(alias)

    def _without_alias(self, name: str) -> Iterator[TargetKey]:
        yield TargetKey(None, name)
        if self._default is not None:
            yield TargetKey(self._default, name)
        scoped = split(name)
        if scoped is not None:
            yield scoped

    def names(self) -> list[tuple[str, TargetKey]]:
        """The names of all targets that have a worker, each once, with their targets; aliases too."""
        found: dict[str, TargetKey] = {}
        for target in self._registry.targets():
            key = target.key
            if key.routing_key is None or key.routing_key == self._default:
                name = key.model
            else:
                name = f"{key.routing_key}/{key.model}"
            if self.find(name) == key:  # else another target has that name
                found[name] = key
        for alias in self._aliases:
            meant = self.find(alias)
            if alias not in found and meant is not None and self._registry.target(meant) is not None:
                found[alias] = meant
        return sorted(found.items())


def split(name: str) -> TargetKey | None:
    """`<routing key>/<model>`, split at the first slash; None if one of them is empty. A UUID is made lower case."""
    prefix, _, model = name.partition("/")
    if not prefix or not model:
        return None
    return TargetKey(prefix.lower() if _UUID(prefix) else prefix, model)
