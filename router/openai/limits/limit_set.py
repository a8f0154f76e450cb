"""The limits of one key, or of one key and one model."""

from dataclasses import dataclass
from typing import Final, NamedTuple

from router.openai.limits.rule import Rule


@dataclass(frozen=True, slots=True)
class LimitSet:
    """Rules for requests and for tokens (input and output together), and how many requests may run at a time."""

    requests: tuple[Rule, ...] = ()
    tokens: tuple[Rule, ...] = ()
    concurrency: int | None = None
    """None: any number."""

    def __bool__(self) -> bool:
        return bool(self.requests or self.tokens or self.concurrency is not None)


NO_LIMITS: Final = LimitSet()


class LimitScope(NamedTuple):
    """What is counted together: the requests of a key, or those of a key for one model."""

    name: str
    """Unique among all scopes, and the same in every process and after a restart."""
    limits: LimitSet
    described: str
    """For messages to the client, for example ``model `m` ``."""
