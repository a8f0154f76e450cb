"""Dials that fail back off, and those to one address take turns."""

import asyncio
from contextlib import asynccontextmanager
from itertools import pairwise

import pytest
from virtual_time import run_virtual

from router.registry.tunnel import TunnelError
from router.tunnels.addresses import DialTarget
from router.tunnels.dial_guard import FIRST_PAUSE_S, LONGEST_PAUSE_S, REMEMBERED, UNPROVED_DIALS, DialGuard

TARGET = DialTarget("192.0.2.1", 9, 4)


@asynccontextmanager
async def dialling(guard, target):
    await guard.begin(target)
    try:
        yield
    except TunnelError:
        guard.end(target, connected=False)
        raise
    guard.end(target, connected=True)


async def dial(guard, target=TARGET, seconds=2.0, *, fails=True):
    async with dialling(guard, target):
        await asyncio.sleep(seconds)
        if fails:
            raise TunnelError("quic connect timed out")


def test_failed_dials_back_off_and_a_success_ends_that():
    async def test():
        guard, now, tries = DialGuard(1), asyncio.get_running_loop().time, []
        while now() < 100:
            try:
                await dial(guard, seconds=0)
            except TunnelError as error:
                if error.reason == "quic connect timed out":
                    tries.append(now())
            await asyncio.sleep(0.05)
        pauses = [b - a for a, b in pairwise(tries)]
        assert pauses[0] >= FIRST_PAUSE_S
        assert LONGEST_PAUSE_S <= pauses[-1] < LONGEST_PAUSE_S + 0.2
        assert len(tries) < 16
        await asyncio.sleep(LONGEST_PAUSE_S)
        await dial(guard, fails=False)
        await dial(guard, fails=False)
        assert len(guard) == 0

    run_virtual(test())


def test_three_hundred_registrations_of_one_target_make_one_dial():
    async def test():
        guard, dials = DialGuard(2), []

        async def one():
            async with dialling(guard, TARGET):
                dials.append(1)
                await asyncio.sleep(2)
                raise TunnelError("quic connect timed out")

        results = await asyncio.gather(*(one() for _ in range(300)), return_exceptions=True)
        assert all(isinstance(result, TunnelError) for result in results)
        assert len(dials) <= 2

    run_virtual(test())


def test_dials_to_one_address_wait_for_their_turn():
    async def test():
        guard, at_once, most = DialGuard(10), 0, 0

        async def one(port):
            nonlocal at_once, most
            async with dialling(guard, DialTarget("192.0.2.1", port, 4)):
                at_once += 1
                most = max(most, at_once)
                await asyncio.sleep(2)
                at_once -= 1
                raise TunnelError("quic connect timed out")

        results = await asyncio.gather(*(one(port) for port in range(1, 301)), return_exceptions=True)
        assert most == UNPROVED_DIALS.pieces
        assert sum(str(result) == "too many dials to 192.0.2.1 under way" for result in results) > 250
        assert len(guard._under_way) + len(guard._targets) == 0

    run_virtual(test())


def test_working_targets_of_one_host_are_all_dialled():
    async def test():
        guard = DialGuard(10)
        targets = [DialTarget("192.0.2.1", port, 4) for port in range(1, 101)]
        await asyncio.gather(*(dial(guard, target, 0.01, fails=False) for target in targets))

    run_virtual(test())


def test_failures_are_remembered_up_to_a_bound():
    async def test():
        guard = DialGuard(10)
        for number in range(REMEMBERED.pieces + 5):
            with pytest.raises(TunnelError):
                await dial(guard, DialTarget(f"10.0.{number >> 8}.{number & 255}", 9, 4), 0)
        assert len(guard) == REMEMBERED.pieces

    run_virtual(test())


def test_our_own_sockets_are_not_dialled():
    async def test():
        guard = DialGuard(10)
        guard.keep_off(lambda ip, port: (ip, port) == ("192.0.2.1", 9))
        with pytest.raises(TunnelError, match="of this router"):
            await dial(guard, fails=False)

    run_virtual(test())


def test_a_dial_that_was_given_up_counts_neither_way():
    async def test():
        guard = DialGuard(10)
        with pytest.raises(TunnelError, match="timed out"):
            await dial(guard)
        await guard.begin(TARGET)
        guard.end(TARGET, connected=None)
        assert len(guard) == 1

    run_virtual(test())
