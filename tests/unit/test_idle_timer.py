"""The idle timeout of a registration stream, on a clock that jumps."""

import asyncio

import pytest

from router.control_plane.idle_timer import IdleTimer

pytestmark = pytest.mark.loop("virtual")


class Clock:
    def __init__(self, idle_s):
        self.calls = []
        self.loop = asyncio.get_running_loop()
        self.began = self.loop.time()
        self.timer = IdleTimer(idle_s, lambda: self.calls.append(round(self.loop.time() - self.began, 2)))


async def test_a_wait_that_lasts_is_reported_once_at_its_time():
    clock = Clock(3.0)
    clock.timer.wait_begins()
    await asyncio.sleep(20)
    assert clock.calls == [3.0]


async def test_messages_put_it_off_to_their_own_time():
    clock = Clock(3.0)
    for _ in range(5):
        clock.timer.wait_begins()
        await asyncio.sleep(1.25)
        clock.timer.wait_ends()
    clock.timer.wait_begins()
    await asyncio.sleep(20)
    assert clock.calls == [5 * 1.25 + 3.0]


async def test_while_a_message_is_processed_no_time_counts():
    clock = Clock(3.0)
    clock.timer.wait_begins()
    await asyncio.sleep(1)
    clock.timer.wait_ends()
    await asyncio.sleep(100)
    assert clock.calls == []
    clock.timer.wait_begins()
    await asyncio.sleep(20)
    assert clock.calls == [104.0]


async def test_without_a_timeout_nothing_is_reported():
    clock = Clock(None)
    clock.timer.wait_begins()
    await asyncio.sleep(100_000)
    assert clock.calls == []


@pytest.mark.parametrize("waiting", [True, False])
async def test_nothing_follows_the_close(waiting):
    clock = Clock(3.0)
    clock.timer.wait_begins()
    if not waiting:
        clock.timer.wait_ends()
    clock.timer.close()
    clock.timer.close()
    await asyncio.sleep(20)
    assert clock.calls == []
