"""Remembers answers about keys for a short time, acceptances and refusals apart, so that a flood of wrong keys displaces no right one."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar

from tunnel_protocol.limit import Limit

T = TypeVar("T")

ANSWERS = Limit("openai.remembered_answers", pieces=10_000)
"""Answers about keys that are remembered, acceptances and refusals each."""


class Remembered(NamedTuple, Generic[T]):
    """An answer, and whether it is still as good as a new one."""

    value: T
    fresh: bool


class AnswerCache(Generic[T]):
    """Values by digest, the oldest displaced first."""

    def __init__(self, fresh_s: float, kept_s: float, clock: Callable[[], float]) -> None:
        """A value is fresh for `fresh_s` seconds and kept for `kept_s`; with `fresh_s` 0 nothing is remembered."""
        self._fresh_s = fresh_s
        self._kept_s = max(fresh_s, kept_s)
        self._clock = clock
        self._values: OrderedDict[bytes, tuple[T, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._values)

    def get(self, digest: bytes) -> Remembered[T] | None:
        """What is remembered; None if nothing, or if it is too old."""
        found = self._values.get(digest)
        if found is None:
            return None
        value, since = found
        age = self._clock() - since
        if age >= self._kept_s:
            del self._values[digest]
            return None
        return Remembered(value, age < self._fresh_s)

    def put(self, digest: bytes, value: T) -> None:
        """Remember `value` from now on."""
        if self._fresh_s <= 0:
            return
        self._values.pop(digest, None)
        self._values[digest] = (value, self._clock())
        if len(self._values) > (ANSWERS.pieces or 0):
            self._values.popitem(last=False)

    def forget(self, digest: bytes) -> None:
        """Remember nothing of `digest`."""
        self._values.pop(digest, None)
