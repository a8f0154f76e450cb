"""Pauses between requests to the Kubernetes API, in virtual time."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from itertools import pairwise

import pytest

from kubernetes_router.backoff import Backoff
from kubernetes_router.kubernetes_api import ApiError, GoneError
from kubernetes_router.metrics import Metrics
from kubernetes_router.slice_events import Change, SliceEvent
from kubernetes_router.slices import EndpointSlice, PortNames
from kubernetes_router.targets import HostnameTemplate, TargetList
from kubernetes_router.watcher import SliceWatcher

REFUSED = ApiError("status_403", "HTTP status 403")


class Source:
    """Answers as told, and notes when it was asked."""

    def __init__(self) -> None:
        self.list_error: ApiError | None = None
        self.watch_error: ApiError | None = None
        self.watch_s = 0.0
        self.lists: list[float] = []
        self.watches: list[float] = []

    async def list(self) -> tuple[list[EndpointSlice], str]:
        self.lists.append(asyncio.get_running_loop().time())
        if self.list_error is not None:
            raise self.list_error
        return [], "1"

    async def watch(self, _resource_version: str) -> AsyncGenerator[SliceEvent]:
        self.watches.append(asyncio.get_running_loop().time())
        yield SliceEvent(Change.BOOKMARK, "2", None)
        await asyncio.sleep(self.watch_s)
        if self.watch_error is not None:
            raise self.watch_error


async def run(source: Source, seconds: float, jitter: Callable[[], float] = lambda: 0.0) -> None:
    targets = TargetList(HostnameTemplate("{pod_name}", "n"))
    names = PortNames(grpc="grpc", quic="quic")
    watcher = SliceWatcher(source, targets, names, Metrics(), backoff=Backoff(jitter))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(seconds):
            await watcher.run()


def pauses(times: list[float]) -> list[float]:
    return [round(after - before, 3) for before, after in pairwise(times)]


@pytest.mark.loop("virtual")
async def test_refused_lists_are_repeated_ever_less_often() -> None:
    source = Source()
    source.list_error = REFUSED
    await run(source, 150)
    assert pauses(source.lists) == [0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30.0, 30.0, 30.0]
    assert len(source.lists) / 150 < 1


@pytest.mark.loop("virtual")
async def test_refused_watches_too_and_without_new_lists() -> None:
    source = Source()
    source.watch_error = REFUSED
    await run(source, 60)
    assert pauses(source.watches) == [0.8, 1.6, 3.2, 6.4, 12.8, 25.6]
    assert len(source.lists) == 1


@pytest.mark.loop("virtual")
@pytest.mark.parametrize("error", [GoneError(), None])
async def test_so_are_watches_that_end_at_once(error: ApiError | None) -> None:
    source = Source()
    source.watch_error = error
    await run(source, 60)
    assert pauses(source.watches) == [0.8, 1.6, 3.2, 6.4, 12.8, 25.6]
    assert len(source.lists) == (1 if error is None else len(source.watches))


@pytest.mark.loop("virtual")
async def test_a_watch_that_worked_is_followed_by_the_next_at_once() -> None:
    source = Source()
    source.watch_s = 300
    await run(source, 1000)
    assert source.watches == [0, 300, 600, 900]


@pytest.mark.loop("virtual")
async def test_after_a_watch_that_worked_pauses_begin_anew() -> None:
    source = Source()
    source.watch_error = REFUSED
    source.watch_s = 10
    loop = asyncio.get_running_loop()
    loop.call_later(25, setattr, source, "watch_s", 0)
    await run(source, 35)
    assert source.watches == [0, 10, 20, 30, pytest.approx(30.8), pytest.approx(32.4)]


def test_pauses_are_random_but_never_shorter_than_planned_or_longer_than_the_limit() -> None:
    backoff = Backoff(lambda: 1.0)
    assert [round(backoff.next_s(), 3) for _ in range(8)] == [1.2, 2.4, 4.8, 9.6, 19.2, 30.0, 30.0, 30.0]
    backoff.reset()
    assert backoff.next_s() == pytest.approx(1.2)
    assert {Backoff().next_s() for _ in range(10)} != {0.8}
