"""Admits requests by the limits of their keys, and corrects what they were charged when the engine has reported usage."""

import asyncio
import itertools
import secrets
from typing import Final

from router.openai.keys.caller import GrantedCaller
from router.openai.limits.counter import Bucket, Charge, Counter, Kind, Outcome, Slots, Verdict
from router.openai.limits.fields import limit_fields
from router.openai.limits.limit_refusals import CANNOT_COUNT, exhausted, impossible
from router.openai.limits.limit_set import LimitScope
from router.openai.ports import Admission, Caller, Headers, Limiter, LimitRefusal, Usage
from router.telemetry.families import Counter as MetricCounter
from tunnel_protocol.limit import Limit

PLANS = Limit("openai.limit_plans", pieces=10_000)
"""Keys and targets whose buckets are kept ready; beyond it the one made first is made anew."""

_TOKENS: Final = Kind.TOKENS  # bound once: looking a member up in its enum takes long (Python 3.11)
_UNKNOWN_OUTPUT: Final = 1
"""Output tokens reserved for a request of which nothing is known."""


class _Plan:
    """What a request of one caller for one target is counted by."""

    __slots__ = ("buckets", "descriptions", "one_request", "owner", "slots")

    def __init__(
        self, owner: str, buckets: tuple[Bucket, ...], slots: tuple[Slots, ...], descriptions: tuple[str, ...]
    ) -> None:
        self.owner = owner
        self.buckets = buckets
        self.slots = slots
        self.descriptions = descriptions
        """Of the scope of each bucket."""
        self.one_request = tuple([Charge(one, 1) for one in buckets])
        """What buckets of requests are charged."""


class Unlimited(Admission):
    """The admission of a request that nothing limits."""

    def finish(self, usage: Usage | None, output_seen: int = 0, *, served: bool = True) -> None:
        """Nothing was charged."""


class Limited(Admission):
    """The admission of a request that was charged."""

    __slots__ = ("_charges", "_counter", "_finished", "_input_tokens", "_lease", "_owner", "_slots")

    def __init__(
        self,
        counter: Counter,
        owner: str,
        charges: tuple[Charge, ...],
        slots: tuple[Slots, ...],
        lease: str,
        input_tokens: int,
        headers: Headers,
    ) -> None:
        super().__init__(headers)
        self._counter = counter
        self._owner = owner
        self._charges = charges
        self._slots = slots
        self._lease = lease
        self._input_tokens = input_tokens
        self._finished = False

    def finish(self, usage: Usage | None, output_seen: int = 0, *, served: bool = True) -> None:
        """See `Admission.finish`."""
        if self._finished:
            return
        self._finished = True
        if not served:
            requests, tokens = 0, 0
        elif usage is None:
            requests, tokens = 1, self._input_tokens + output_seen
        else:
            requests, tokens = 1, (usage.input_tokens or self._input_tokens) + usage.output_tokens
        corrections = []
        for bucket, amount in self._charges:
            difference = (tokens if bucket.kind is _TOKENS else requests) - amount
            if difference:
                corrections.append(Charge(bucket, difference))
        if corrections or self._slots:
            self._counter.settle(self._owner, tuple(corrections), self._slots, self._lease)


UNLIMITED: Final = Unlimited()


class KeyLimiter(Limiter):
    """The limits of keys, counted by a `Counter`."""

    def __init__(self, counter: Counter, refused: MetricCounter, *, open_if_unknown: bool) -> None:
        """`refused` counts refusals by key id and kind; `open_if_unknown`: admit requests while the counter cannot be asked."""
        self._counter = counter
        self._refused = refused
        self._open_if_unknown = open_if_unknown
        self._plans: dict[tuple[GrantedCaller, str | None, str], _Plan] = {}
        # Unique over all processes that count in one place.
        self._lease_prefix = secrets.token_hex(8)
        self._leases = itertools.count()
        self._running: set[asyncio.Future[Outcome]] = set()

    def admit(
        self, caller: Caller, routing_key: str | None, model: str, input_tokens: int, output_tokens: int | None
    ) -> "Admission | LimitRefusal | asyncio.Future[Admission | LimitRefusal]":
        """See `Limiter.admit`."""
        if not isinstance(caller, GrantedCaller) or not caller.limited:
            return UNLIMITED
        plan = self._plan(caller, routing_key, model)
        if not plan.buckets and not plan.slots:
            return UNLIMITED
        output = _UNKNOWN_OUTPUT if output_tokens is None else output_tokens
        tokens = input_tokens + output
        charges = tuple([Charge(one[0], tokens) if one[0].kind is _TOKENS else one for one in plan.one_request])
        for bucket, amount in charges:
            if amount > bucket.capacity:
                self._refused.inc((caller.key_id, "too_large"))
                return impossible(bucket, input_tokens, output)
        lease = f"{self._lease_prefix}-{next(self._leases)}" if plan.slots else ""
        request = _Request(caller, plan, charges, lease, input_tokens)
        outcome = self._counter.reserve(plan.owner, charges, plan.slots, lease)
        if isinstance(outcome, Outcome):
            return self._result(request, outcome)
        return asyncio.ensure_future(self._admit_later(request, outcome))

    async def _admit_later(self, request: "_Request", outcome: "asyncio.Future[Outcome]") -> "Admission | LimitRefusal":
        self._running.add(outcome)
        outcome.add_done_callback(self._running.discard)
        try:
            return self._result(request, await asyncio.shield(outcome))
        except asyncio.CancelledError:
            # It may be counted already, or soon: what it took is given back then.
            outcome.add_done_callback(lambda found: self._give_back(request, found))
            raise

    def _give_back(self, request: "_Request", outcome: "asyncio.Future[Outcome]") -> None:
        if not outcome.cancelled() and outcome.result().verdict is Verdict.GRANTED:
            self._admission(request, outcome.result()).finish(None, served=False)

    def _result(self, request: "_Request", outcome: Outcome) -> "Admission | LimitRefusal":
        if outcome.verdict is Verdict.GRANTED:
            return self._admission(request, outcome)
        if outcome.verdict is Verdict.UNKNOWN:
            if self._open_if_unknown:
                return UNLIMITED
            self._refused.inc((request.caller.key_id, "unknown"))
            return CANNOT_COUNT
        refusal = exhausted(request.charges, request.plan.descriptions, request.plan.slots, outcome)
        self._refused.inc((request.caller.key_id, refusal.type))
        return refusal

    def _admission(self, request: "_Request", outcome: Outcome) -> Limited:
        plan = request.plan
        return Limited(
            self._counter,
            plan.owner,
            request.charges,
            plan.slots,
            request.lease,
            request.input_tokens,
            limit_fields(plan.buckets, outcome.levels),
        )

    def _plan(self, caller: GrantedCaller, routing_key: str | None, model: str) -> _Plan:
        # By the caller itself: after a reload of the keys it is another one, with other limits.
        key = (caller, routing_key, model)
        found = self._plans.get(key)
        if found is None:
            if len(self._plans) >= (PLANS.pieces or 0):
                del self._plans[next(iter(self._plans))]
            self._plans[key] = found = _plan_of(caller.owner, caller.limit_scopes(routing_key, model))
        return found


class _Request:
    """A request that is being counted."""

    __slots__ = ("caller", "charges", "input_tokens", "lease", "plan")

    def __init__(
        self, caller: GrantedCaller, plan: _Plan, charges: tuple[Charge, ...], lease: str, input_tokens: int
    ) -> None:
        self.caller = caller
        self.plan = plan
        self.charges = charges
        self.lease = lease
        self.input_tokens = input_tokens


def _plan_of(owner: str, scopes: tuple[LimitScope, ...]) -> _Plan:
    buckets = tuple(
        (
            Bucket(f"{scope.name}:{kind.value}:{rule.unit.value}", kind, rule.amount, rule.unit.period_ms),
            scope.described,
        )
        for scope in scopes
        for kind, rules in ((Kind.REQUESTS, scope.limits.requests), (Kind.TOKENS, scope.limits.tokens))
        for rule in rules
    )
    slots = tuple(
        Slots(f"{scope.name}:running", scope.limits.concurrency)
        for scope in scopes
        if scope.limits.concurrency is not None
    )
    return _Plan(owner, tuple(bucket for bucket, _ in buckets), slots, tuple(described for _, described in buckets))
