"""Attempts whose response head does not come are told in time, each on its own, with one timer for all."""

import asyncio

import pytest

from router.proxy.head_deadlines import HeadDeadlines

pytestmark = pytest.mark.loop("virtual")


class Waiting:
    def __init__(self, heard, name, fault=None):
        self.deadline_at = 0.0
        self.heard = heard
        self.name = name
        self.fault = fault

    def head_late(self):
        self.heard.append((self.name, round(asyncio.get_running_loop().time() - self.deadline_at, 3)))
        if self.fault is not None:
            raise self.fault


async def test_each_attempt_is_told_at_its_own_deadline():
    heard = []
    deadlines = HeadDeadlines(asyncio.get_running_loop(), 10.0)
    for name in ("first", "second"):
        deadlines.add(Waiting(heard, name))
        await asyncio.sleep(4)
    await asyncio.sleep(2.01)
    assert heard == [("first", 0.0)]
    await asyncio.sleep(4)
    assert heard == [("first", 0.0), ("second", 0.0)]
    await asyncio.sleep(100)
    deadlines.add(Waiting(heard, "third"))
    await asyncio.sleep(10.01)
    assert [name for name, _ in heard] == ["first", "second", "third"]


async def test_an_attempt_whose_head_came_is_not_told():
    heard = []
    deadlines = HeadDeadlines(asyncio.get_running_loop(), 10.0)
    waiting = [Waiting(heard, name) for name in range(3)]
    for one in waiting:
        deadlines.add(one)
    deadlines.discard(waiting[0])
    deadlines.discard(waiting[0])
    await asyncio.sleep(9)
    deadlines.discard(waiting[2])
    await asyncio.sleep(20)
    assert [name for name, _ in heard] == [1]


async def test_a_defect_at_one_deadline_costs_no_other_attempt_its_end():
    heard = []
    loop = asyncio.get_running_loop()
    told = []
    loop.set_exception_handler(lambda _, context: told.append(context["exception"]))
    deadlines = HeadDeadlines(loop, 10.0)
    fault = ValueError("a defect")
    deadlines.add(Waiting(heard, 0, fault))
    deadlines.add(Waiting(heard, 1))
    await asyncio.sleep(11)
    assert [name for name, _ in heard] == [0, 1]
    assert told == [fault]


async def test_a_head_that_comes_in_the_turn_of_the_deadline_is_in_time():
    heard = []
    deadlines = HeadDeadlines(asyncio.get_running_loop(), 10.0)
    other = Waiting(heard, "other")

    class Ends(Waiting):
        def head_late(self):
            super().head_late()
            deadlines.discard(other)

    deadlines.add(Ends(heard, "ends"))
    deadlines.add(other)
    await asyncio.sleep(11)
    assert [name for name, _ in heard] == ["ends"]
