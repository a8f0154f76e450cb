"""Counts in Redis, for several routers or processes together. Every call has a deadline, and a server that is down is left alone.

While Redis cannot be asked, the answer is `UNKNOWN` at once: after a failure nothing is asked for a second, and then one request
at a time until one succeeds. What is settled meanwhile is lost; leases of running requests then end by themselves.
"""

import asyncio
import math
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final, Protocol

import structlog

from router.openai.limits.counter import Charge, Outcome, Slots, Verdict
from router.openai.limits.redis_scripts import RENEW, RESERVE, SETTLE
from router.telemetry.families import Counter as MetricCounter
from tunnel_protocol.limit import Limit

_log = structlog.get_logger()

CALLS: Final = Limit("openai.redis_calls", pieces=1_000)
"""Calls of Redis that run or wait for a connection; more requests are answered as if it were down."""

LEASE_MS: Final = 60_000
"""How long the slot of a request is held without renewal, by a process that is gone."""
RENEW_EVERY_S: Final = LEASE_MS / 1000 / 3
_LEASES_PER_CALL = 500
_PAUSE_S = 1.0
"""How long nothing is asked after a failure."""
_UNKNOWN: Final = Outcome(Verdict.UNKNOWN)

Script = Callable[[list[str], list[str | int | float]], Coroutine[Any, Any, Any]]
"""Runs a script with these keys and arguments."""


class Scripts(Protocol):
    """The connection to Redis."""

    def script(self, source: str) -> Script:
        """A script by its source; run by its digest once the server knows it."""

    async def close(self) -> None:
        """Close all connections."""


class RedisCallError(Exception):
    """A call failed. `reason` is a short word, for the metric's label; `detail` is for the log, without a password."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


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
        """`timeout_s` seconds limit each call, its connection included; `failures` counts by reason."""
        self._scripts = scripts
        self._reserve = scripts.script(RESERVE)
        self._settle = scripts.script(SETTLE)
        self._renew = scripts.script(RENEW)
        self._failures = failures
        self._timeout_s = timeout_s
        self._clock = clock
        self._leases: dict[str, tuple[str, ...]] = {}
        """The names of the slots of each lease; bounded by the requests that run."""
        self._running: set[asyncio.Task[Any]] = set()
        self._down_until: float | None = None
        """None while calls succeed."""
        self._probing = False

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
        return self._start(self._ask(owner, charges, slots, lease))

    def settle(self, owner: str, charges: tuple[Charge, ...], slots: tuple[Slots, ...], lease: str) -> None:
        """See `Counter.settle`."""
        self._leases.pop(lease, None)
        if not self._may_ask():
            self._failures.inc(("not_settled",))
            return
        keys = [_key(owner, charge.bucket.name) for charge in charges] + [_key(owner, one.name) for one in slots]
        self._start(self._call(self._settle, keys, [lease, len(charges), *_numbers(charges)]))

    async def run(self) -> None:
        """Renew the leases of running requests, until cancelled."""
        while True:
            await asyncio.sleep(RENEW_EVERY_S)
            await self.renew()

    async def renew(self) -> None:
        """Renew all leases now, in calls of a bounded size."""
        held = [(key, lease) for lease, keys in self._leases.items() for key in keys]
        for first in range(0, len(held), _LEASES_PER_CALL):
            part = held[first : first + _LEASES_PER_CALL]
            if not self._may_ask():
                return
            await self._call(self._renew, [key for key, _ in part], [LEASE_MS, *(lease for _, lease in part)])

    async def close(self) -> None:
        """Wait, within the deadline of a call, for what is being settled, and close the connections."""
        if self._running:
            await asyncio.wait(self._running, timeout=self._timeout_s)
        for task in self._running:
            task.cancel()
        await self._scripts.close()

    def _may_ask(self) -> bool:
        if len(self._running) >= (CALLS.pieces or 0):
            self._failures.inc(("busy",))
            return False
        if self._down_until is None:
            return True
        return not self._probing and self._clock() >= self._down_until

    def _start(self, work: "Coroutine[Any, Any, Any]") -> "asyncio.Task[Any]":
        self._probing = self._down_until is not None
        task = asyncio.get_running_loop().create_task(work)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task

    async def _ask(self, owner: str, charges: tuple[Charge, ...], slots: tuple[Slots, ...], lease: str) -> Outcome:
        slot_keys = tuple(_key(owner, one.name) for one in slots)
        keys = [*(_key(owner, charge.bucket.name) for charge in charges), *slot_keys]
        arguments = [lease, LEASE_MS, len(charges), *_numbers(charges), *(one.most for one in slots)]
        outcome = _outcome(await self._call(self._reserve, keys, arguments))
        if outcome.verdict is Verdict.GRANTED and slot_keys:
            self._leases[lease] = slot_keys
        return outcome

    async def _call(self, script: Script, keys: list[str], arguments: Sequence[str | int | float]) -> Any:
        """The script's answer; None if it failed, which is counted, and logged once until it succeeds again."""
        try:
            async with asyncio.timeout(self._timeout_s):
                found = await script(keys, list(arguments))
        except TimeoutError:
            self._note_failure("timeout", f"no answer within {self._timeout_s * 1000:g} ms")
        except RedisCallError as error:
            self._note_failure(error.reason, error.detail)
        else:
            self._note_success()
            return found
        finally:
            self._probing = False
        return None

    def _note_failure(self, reason: str, detail: str) -> None:
        self._failures.inc((reason,))
        if self._down_until is None:
            _log.warning("Redis cannot be asked; limits of OpenAI clients are not counted", reason=reason, error=detail)
        self._down_until = self._clock() + _PAUSE_S

    def _note_success(self) -> None:
        if self._down_until is not None:
            self._down_until = None
            _log.info("Redis answers again; limits of OpenAI clients are counted")


def _key(owner: str, name: str) -> str:
    """The name in Redis. The braces keep all names of an owner on one node of a cluster (Redis, "Hash tags")."""
    return f"lrr:limits:{{{owner}}}{name.removeprefix(owner)}"


def _numbers(charges: tuple[Charge, ...]) -> list[int | float]:
    return [number for charge in charges for number in (charge.bucket.capacity, charge.bucket.period_ms, charge.amount)]


def _outcome(answer: Any) -> Outcome:
    """The answer of `RESERVE`; `UNKNOWN` for None and for anything that is not one."""
    try:
        granted, levels, running = answer
        found = Outcome(
            Verdict.GRANTED if granted == 1 else Verdict.DENIED, tuple(map(float, levels)), tuple(map(int, running))
        )
    except (TypeError, ValueError):
        return _UNKNOWN
    return found if all(map(math.isfinite, found.levels)) else _UNKNOWN
