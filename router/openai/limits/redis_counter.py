"""Counts in Redis, for several routers or processes together. Every answer has a deadline, and a server that is down is left alone.

Operations that come while a call runs go together in the next one. While Redis cannot be asked, the answer is `UNKNOWN` at once: after a
failure nothing is asked for a second, and then one request at a time until one succeeds. What is settled meanwhile is lost;
leases of running requests then end by themselves.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, Final, NamedTuple, Protocol

import structlog

from router.openai.limits.counter import Charge, Outcome, Slots, Verdict
from router.openai.limits.redis_script import SOURCE, Operation, outcomes, renewing, reserving, settling
from router.telemetry.families import Counter as MetricCounter
from tunnel_protocol.limit import Limit

_log = structlog.get_logger()

OPERATIONS = Limit("openai.redis_operations", pieces=4_096)
"""Operations that Redis has not answered; more requests are answered as if it were down."""

LEASE_MS = 60_000
"""How long the slot of a request is held without renewal, by a process that is gone."""
RENEW_EVERY_S = LEASE_MS / 1000 / 3
CALLS: Final = 2
"""Calls at a time. The second keeps Redis busy while the answer of the first travels."""
_OPERATIONS_PER_CALL = 128
"""So that one call keeps Redis from its other clients for about a millisecond."""
_PAUSE_S = 1.0
"""How long nothing is asked after a failure."""
_UNKNOWN: Final = Outcome(Verdict.UNKNOWN)

Script = Callable[[list[str], list[str]], Coroutine[Any, Any, Any]]
"""Runs a script with these keys and arguments."""


class Scripts(Protocol):
    """The connection to Redis."""

    def script(self, source: str) -> Script:
        """A script by its source; run by its digest once the server knows it. It raises only `RedisCallError`."""

    async def close(self) -> None:
        """Close all connections."""


class RedisCallError(Exception):
    """A call failed. `reason` is a short word, for the metric's label; `detail` is for the log, without a password."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class _Queued(NamedTuple):
    operation: Operation
    since: float
    """Time of the event loop."""
    answer: "asyncio.Future[Outcome] | None"
    """None: nobody waits for it."""
    buckets: int
    """Number of charges, of a reservation."""


class RedisCounter:
    """The counter of several processes. Runs on one event loop; `run` renews leases."""

    def __init__(
        self,
        scripts: Scripts,
        failures: MetricCounter,
        *,
        timeout_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`timeout_s` seconds limit each answer, the connection included; `failures` counts by reason."""
        self._scripts = scripts
        self._script = scripts.script(SOURCE)
        self._failures = failures
        self._timeout_s = timeout_s
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._queue: deque[_Queued] = deque()
        self._unanswered = 0
        self._calls: set[asyncio.Task[None]] = set()
        self._leases: dict[str, tuple[str, ...]] = {}
        """The names of the slots of each lease; bounded by the requests that run."""
        self._down_until: float | None = None
        """None while calls succeed."""
        self._closed = False

    @property
    def up(self) -> bool:
        """Whether the last call succeeded."""
        return self._down_until is None

    def reserve(
        self, owner: str, charges: tuple[Charge, ...], slots: tuple[Slots, ...], lease: str
    ) -> "Outcome | asyncio.Future[Outcome]":
        """See `Counter.reserve`."""
        if not self._may_ask():
            return _UNKNOWN
        slot_keys = tuple([_key(owner, one.name) for one in slots])
        keys = [_key(owner, charge.bucket.name) for charge in charges]
        operation = reserving([*keys, *slot_keys], lease or "-", charges, [one.most for one in slots])
        answer: asyncio.Future[Outcome] = self._loop.create_future()
        if slot_keys:
            answer.add_done_callback(lambda found: self._hold(lease, slot_keys, found))
        self._put(operation, answer, len(charges))
        return answer

    def settle(self, owner: str, charges: tuple[Charge, ...], slots: tuple[Slots, ...], lease: str) -> None:
        """See `Counter.settle`."""
        self._leases.pop(lease, None)
        if not self._may_ask():
            self._failures.inc(("not_settled",))
            return
        keys = [_key(owner, charge.bucket.name) for charge in charges] + [_key(owner, one.name) for one in slots]
        self._put(settling(keys, lease or "-", charges))

    async def run(self) -> None:
        """Renew the leases of running requests, until cancelled."""
        while True:
            await asyncio.sleep(RENEW_EVERY_S)
            self.renew()

    def renew(self) -> None:
        """Renew all leases, in the calls that follow."""
        for lease, keys in list(self._leases.items()):
            for key in keys:
                if not self._may_ask():
                    return
                self._put(renewing(key, lease))

    async def close(self) -> None:
        """Wait, within the deadline of a call, for what is being settled, and close the connections. Later nothing is asked."""
        self._closed = True
        with suppress(TimeoutError):
            async with asyncio.timeout(self._timeout_s):
                while self._calls:
                    await asyncio.wait(self._calls)
        self._fail_queue()
        running = list(self._calls)
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running)
        await self._scripts.close()

    def _may_ask(self) -> bool:
        if self._unanswered >= (OPERATIONS.pieces or 0):
            self._failures.inc(("busy",))
            return False
        if self._closed:
            return False
        if self._down_until is None:
            return True
        return not self._unanswered and self._clock() >= self._down_until

    def _hold(self, lease: str, keys: tuple[str, ...], found: "asyncio.Future[Outcome]") -> None:
        if not found.cancelled() and found.result().verdict is Verdict.GRANTED:
            self._leases[lease] = keys

    def _put(self, operation: Operation, answer: "asyncio.Future[Outcome] | None" = None, buckets: int = 0) -> None:
        self._queue.append(_Queued(operation, self._loop.time(), answer, buckets))
        self._unanswered += 1
        if len(self._calls) < CALLS:
            self._start_call()

    def _start_call(self) -> None:
        task = self._loop.create_task(self._call())
        self._calls.add(task)
        task.add_done_callback(self._call_ended)

    def _call_ended(self, task: "asyncio.Task[None]") -> None:
        self._calls.discard(task)
        if self._queue:
            self._start_call()

    async def _call(self) -> None:
        """Run what is queued, up to the limit of one call."""
        batch = [self._queue.popleft() for _ in range(min(len(self._queue), _OPERATIONS_PER_CALL))]
        if not batch:
            return  # a call that began earlier took it
        found: list[Outcome | None] | None = None
        try:
            found = await self._outcomes(batch)
        finally:
            self._unanswered -= len(batch)
            waiting = [one.answer for one in batch if one.answer is not None]
            for index, answer in enumerate(waiting):
                self._give(answer, _UNKNOWN if found is None else found[index])

    async def _outcomes(self, batch: list[_Queued]) -> "list[Outcome | None] | None":
        """The outcomes of the reservations of a batch; None if the call failed."""
        keys = [key for one in batch for key in one.operation.keys]
        words = " ".join([one.operation.words for one in batch])
        try:
            async with asyncio.timeout_at(batch[0].since + self._timeout_s):
                answer = await self._script(keys, [str(LEASE_MS), words])
        except TimeoutError:
            self._note_failure("timeout", f"no answer within {self._timeout_s * 1000:g} ms")
            return None
        except RedisCallError as error:
            self._note_failure(error.reason, error.detail)
            return None
        found = outcomes(answer, [one.buckets for one in batch if one.answer is not None])
        if found is None:
            self._note_failure("response", "the answer is none of the script")
        else:
            self._note_success()
        return found

    def _give(self, answer: "asyncio.Future[Outcome]", outcome: Outcome | None) -> None:
        if outcome is None:
            # Its names in Redis hold something else. That says nothing about the server.
            self._failures.inc(("response",))
            outcome = _UNKNOWN
        if not answer.done():
            answer.set_result(outcome)

    def _fail_queue(self) -> None:
        """Nothing is asked for what is queued: the server is down, and those who wait have a deadline."""
        while self._queue:
            one = self._queue.popleft()
            self._unanswered -= 1
            if one.answer is None:
                self._failures.inc(("not_settled",))
            else:
                self._give(one.answer, _UNKNOWN)

    def _note_failure(self, reason: str, detail: str) -> None:
        self._failures.inc((reason,))
        if self._down_until is None:
            _log.warning("Redis cannot be asked; limits of OpenAI clients are not counted", reason=reason, error=detail)
        self._down_until = self._clock() + _PAUSE_S
        self._fail_queue()

    def _note_success(self) -> None:
        if self._down_until is not None:
            self._down_until = None
            _log.info("Redis answers again; limits of OpenAI clients are counted")


def _key(owner: str, name: str) -> str:
    """The name in Redis, those of one owner with a common beginning."""
    return f"lrr:limits:{{{owner}}}{name.removeprefix(owner)}"
