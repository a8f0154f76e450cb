"""The port of what counts: in this process, or for several of them in Redis."""

import asyncio
from enum import Enum
from typing import NamedTuple, Protocol


class Kind(Enum):
    """What a bucket counts; the value is `error.type` of a refusal and the end of the names of its response fields."""

    REQUESTS = "requests"
    TOKENS = "tokens"


class Bucket(NamedTuple):
    """One rule of one scope."""

    name: str
    kind: Kind
    capacity: int
    period_ms: int


class Charge(NamedTuple):
    """What a request takes out of a bucket; negative: what it puts back."""

    bucket: Bucket
    amount: float


class Slots(NamedTuple):
    """How many requests of a scope may run at a time."""

    name: str
    most: int


class Verdict(Enum):
    """Whether all buckets and slots had enough."""

    GRANTED = "granted"
    DENIED = "denied"
    """Nothing was taken."""
    UNKNOWN = "unknown"
    """The counter cannot be asked now; nothing is taken."""


class Outcome(NamedTuple):
    """The answer of a counter."""

    verdict: Verdict
    levels: tuple[float, ...] = ()
    """Of the bucket of each charge: after it if granted, as it is if denied."""
    running: tuple[int, ...] = ()
    """For each of the slots: requests that run, this one included if granted."""


class Counter(Protocol):
    """Takes from all buckets and slots of a request, or from none: no other request is counted in between."""

    def reserve(
        self, owner: str, charges: tuple[Charge, ...], slots: tuple[Slots, ...], lease: str
    ) -> "Outcome | asyncio.Future[Outcome]":
        """Take `charges` and one of each of `slots`, held by the request `lease` until `settle`.

        `owner` is the common beginning of all names. A future has a result within the counter's deadline.
        """

    def settle(self, owner: str, charges: tuple[Charge, ...], slots: tuple[Slots, ...], lease: str) -> None:
        """Correct what a request took by `charges`, and give its `slots` back. Does not wait and does not fail."""
