"""Workers are killed and restarted while clients ask: every request ends, in a documented way, with its own bytes."""

import asyncio
import time
from random import Random

import pytest

from llm_request_router.testing import Process, System
from support.receipts import MODEL, active_workers, counted, exchange, http_session, start_worker

WORKERS, CLIENTS, LOAD_S, REQUEST_LIMIT_S = 4, 24, 10.0, 20.0
DOCUMENTED = {"answered", "broken off", "error 404", "error 502", "error 503"}


class Fleet:
    """Workers that die, and others that take their places."""

    def __init__(self, system: System, random: Random) -> None:
        self._system = system
        self._random = random
        _, self._engine_url = system.add_engine(MODEL, name="engine", options=["--token-delay-ms", "15"])
        self.starts = 0
        self.kills = 0
        self.workers = [self._start(number) for number in range(WORKERS)]

    def _start(self, number: int) -> Process:
        self.starts += 1
        # a killed worker's registration lives until the router misses it: a new name does not have to wait for that
        return start_worker(self._system, f"worker-{number}-{self.starts}", self._engine_url)

    def all_routable(self, timeout_s: float = 20) -> None:
        """Wait until all running workers can be routed to."""
        self.workers[0].until(lambda: active_workers(self._system) >= WORKERS, "all are routable", timeout_s)

    def kill_some(self) -> None:
        """Kill one to three at once, and start as many."""
        for number in self._random.sample(range(WORKERS), self._random.randint(1, 3)):
            self.workers[number].kill()
            self.kills += 1
            self.workers[number] = self._start(number)


@pytest.mark.chaos
@pytest.mark.parametrize("seed", [5])
async def test_every_request_ends_with_its_own_bytes_or_a_documented_error(llm_router, seed):
    fleet = Fleet(llm_router, Random(seed))
    fleet.all_routable()
    end = time.monotonic() + LOAD_S

    async def caller(session, number: int, outcomes: list[str]) -> None:
        random = Random(f"{seed}-{number}")
        asked = 0
        while time.monotonic() < end:
            name = f"caller-{number}-{asked}"
            asked += 1
            outcomes.append(
                await exchange(session, llm_router, name, random.randint(1, 12), random.choice([0, 9, 90_000]))
            )

    async def killer() -> None:
        while time.monotonic() < end - 1:
            await asyncio.to_thread(fleet.kill_some)
            await asyncio.to_thread(fleet.all_routable)

    outcomes: list[str] = []
    # a request without an end raises TimeoutError here, and fails the test
    async with http_session(timeout_s=REQUEST_LIMIT_S) as session, asyncio.TaskGroup() as group:
        group.create_task(killer())
        for number in range(CLIENTS):
            group.create_task(caller(session, number, outcomes))
    async with http_session(timeout_s=REQUEST_LIMIT_S) as session:
        await asyncio.to_thread(fleet.all_routable)
        after = [await exchange(session, llm_router, f"after-{number}") for number in range(40)]
    assert "answered" in after[-10:], f"no recovery: {counted(after)}"

    outcomes = outcomes
    found = counted(outcomes)
    assert set(found) <= DOCUMENTED, found
    print(f"{fleet.kills} kills, {found}")  # noqa: T201 - shown with -s and on failure
    assert fleet.kills >= 2
    assert found["answered"] > len(outcomes) / 2, found
