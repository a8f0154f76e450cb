"""Whom a registration may make the router dial, and how often without success.

A registration is a few bytes and names any address. One dial without an answer sends about 6 kB there: without a guard a
worker's credentials are enough to make the router flood a third party.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

from router.registry.tunnel import TunnelError
from router.tunnels.addresses import DialTarget
from tunnel_protocol.limit import Limit

UNPROVED_DIALS = Limit("tunnels.unproved_dials_per_address", pieces=4)
"""Dials under way to ports of one IP address at which nobody has answered since the last failure."""

REMEMBERED = Limit("tunnels.remembered_dial_failures", pieces=1_024)
"""Targets whose failures are remembered."""

FIRST_PAUSE_S = 0.25
LONGEST_PAUSE_S = 10.0


class _Failures(NamedTuple):
    times: int
    until: float
    """When the next dial may be tried, in loop time."""


class DialGuard:
    """Shared by all registrations of a router."""

    def __init__(self, longest_wait_s: float) -> None:
        self._longest_wait_s = longest_wait_s
        self._failures: OrderedDict[tuple[str, int], _Failures] = OrderedDict()
        self._under_way: dict[str, int] = {}
        self._targets: set[tuple[str, int]] = set()
        self._waiting: dict[str, asyncio.Event] = {}
        self._own: list[Callable[[str, int], bool]] = []

    def __len__(self) -> int:
        """How many targets are remembered."""
        return len(self._failures)

    def keep_off(self, is_own: Callable[[str, int], bool]) -> None:
        """Never dial an address and port for which `is_own` is true."""
        self._own.append(is_own)

    async def begin(self, target: DialTarget) -> None:
        """Before a dial; `end` has to follow. Waits for its turn.

        Raises `TunnelError` for a target of our own, one that failed a moment ago, or whose turn does not come in time.
        """
        key = (target.ip, target.port)
        if any(is_own(*key) for is_own in self._own):
            raise TunnelError("quic inference_server_url is an address of this router")
        await self._turn(key)
        self._targets.add(key)
        self._under_way[target.ip] = self._under_way.get(target.ip, 0) + 1

    def end(self, target: DialTarget, *, connected: bool | None) -> None:
        """After a dial; `connected` is None if it was given up without an outcome."""
        key = (target.ip, target.port)
        if connected:
            self._failures.pop(key, None)
        elif connected is not None:
            self._failed(key)
        self._targets.discard(key)
        left = self._under_way[target.ip] - 1
        if left:
            self._under_way[target.ip] = left
        else:
            del self._under_way[target.ip]
        waiting = self._waiting.pop(target.ip, None)
        if waiting is not None:
            waiting.set()

    async def _turn(self, key: tuple[str, int]) -> None:
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + self._longest_wait_s
        while True:
            failures = self._failures.get(key)
            if failures is not None and loop.time() < failures.until:
                if failures.until > give_up_at:
                    raise TunnelError(f"no dial to {key[0]}:{key[1]} so soon after {failures.times} failed ones")
                await asyncio.sleep(failures.until - loop.time())
                continue
            if key not in self._targets and self._under_way.get(key[0], 0) < (UNPROVED_DIALS.pieces or 0):
                return
            changed = self._waiting.setdefault(key[0], asyncio.Event())
            try:
                async with asyncio.timeout_at(give_up_at):
                    await changed.wait()
            except TimeoutError:
                raise TunnelError(f"too many dials to {key[0]} under way") from None

    def _failed(self, key: tuple[str, int]) -> None:
        before = self._failures.pop(key, None)
        times = 1 if before is None else before.times + 1
        pause = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(times - 1, 10))
        self._failures[key] = _Failures(times, asyncio.get_running_loop().time() + pause)
        while len(self._failures) > (REMEMBERED.pieces or 0):
            self._failures.popitem(last=False)
