"""Reads the live state of all processes of a router, and makes one of it (docs/api.md, "Several processes")."""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Final

import msgspec
import structlog

from router.operators.live_document import API, ROWS, Live, Policy, Process, State
from router.operators.request_log import LAST
from router.supervisor.live_merge import merged, router_of
from router.supervisor.scrape import NoPageError, fetch
from router.supervisor.supervisor import Slot, metrics_address

_log = structlog.get_logger()

FETCH_S: Final = 2.0
"""Seconds that a process may take to answer."""

_TARGET: Final = f"{API}/process".encode()
_LIMITS: Final = (ROWS.pieces or 0, LAST.pieces or 0)


class LiveProcesses:
    """The live state of the router; implements `LiveSource`."""

    def __init__(self, stargate_id: str, slots: Callable[[], Sequence[Slot]]) -> None:
        """`slots` returns the slots of the supervisor."""
        self._stargate_id = stargate_id
        self._slots = slots
        self._started_at = time.time()
        self._missing: set[str] = set()

    async def read(self) -> Live:
        """Ask all processes at once; one that does not answer is left out, and said to be."""
        slots = self._slots()
        answers = await asyncio.gather(*(self._ask(slot) for slot in slots))
        lives = [live for live in answers if live is not None]
        processes = [
            Process(
                stargate_id=slot.plan.stargate_id,
                serving=live is not None,
                restarts=slot.restarts.restarts,
            )
            for slot, live in zip(slots, answers, strict=True)
        ]
        states = [live.state for live in lives]
        router = router_of(states, self._stargate_id, round(time.time(), 3), self._started_at, processes)
        if lives:
            return merged(lives, router, _LIMITS)
        policy = Policy(digest="", default_algorithm="", loaded_at=0.0, reloads=0)
        nothing = State(router=router, policy=policy, certificates=[], targets=[], clusters=[], workers=[], flows=[])
        return Live(state=nothing, history=[], requests=[])

    async def _ask(self, slot: Slot) -> Live | None:
        stargate_id = slot.plan.stargate_id
        try:
            answer = await fetch(metrics_address(slot), _TARGET, FETCH_S)
            live: Live = msgspec.json.decode(answer.body, type=Live)
        except (NoPageError, msgspec.MsgspecError) as error:
            if stargate_id not in self._missing:
                self._missing.add(stargate_id)
                _log.info("no state of a process", router=stargate_id, error=str(error))
            return None
        self._missing.discard(stargate_id)
        return live
