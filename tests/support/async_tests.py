"""How async tests run, and async fixtures of theirs: `async def test_…`, each on a loop of its own.

`@pytest.mark.loop(NAME)` chooses the loop (`support.loops`; "asyncio" without it), `@pytest.mark.deadline(SECONDS)` the deadline.
Fixtures may be async; they run on the loop of the test that asks for them. A task that is left running is an error.
"""

import inspect
from collections.abc import AsyncGenerator, Callable, Iterator
from typing import Any

import pytest

from support.loops import NAMES, TEST_DEADLINE_S, TestLoop

_LOOP = pytest.StashKey[TestLoop]()


def _argument(item: pytest.Item, marker: str, default: Any) -> Any:
    found = item.get_closest_marker(marker)
    return default if found is None else found.args[0]


def _deadline_s(item: pytest.Item) -> float:
    return float(_argument(item, "deadline", TEST_DEADLINE_S))


def _loop(item: pytest.Item) -> TestLoop:
    if _LOOP not in item.stash:
        name = _argument(item, "loop", "asyncio")
        if name not in NAMES:
            pytest.fail(f"no such loop: {name!r}, but {', '.join(NAMES)}", pytrace=False)
        item.stash[_LOOP] = TestLoop(name)
    return item.stash[_LOOP]


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = pyfuncitem._fixtureinfo.argnames
    arguments = {name: pyfuncitem.funcargs[name] for name in names}
    _loop(pyfuncitem).run(pyfuncitem.obj(**arguments), _deadline_s(pyfuncitem))
    return True


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef: Any, request: pytest.FixtureRequest) -> Iterator[None]:
    made: Callable[..., Any] = fixturedef.func
    if not (inspect.iscoroutinefunction(made) or inspect.isasyncgenfunction(made)):
        return (yield)
    item = request.node
    assert isinstance(item, pytest.Function), "an async fixture lives as long as one test"
    loop, deadline_s = _loop(item), _deadline_s(item)

    def at_once(**arguments: Any) -> Any:
        return loop.run(made(**arguments), deadline_s)

    def in_turns(**arguments: Any) -> Iterator[Any]:
        generator: AsyncGenerator[Any] = made(**arguments)
        yield loop.run(anext(generator), deadline_s)
        try:
            loop.run(anext(generator), deadline_s)
        except StopAsyncIteration:
            return
        raise AssertionError(f"{made.__name__} yields twice")

    fixturedef.func = in_turns if inspect.isasyncgenfunction(made) else at_once
    try:
        return (yield)
    finally:
        fixturedef.func = made


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Iterator[None]:
    try:
        return (yield)
    finally:
        loop = item.stash.get(_LOOP, None)
        if loop is not None:
            del item.stash[_LOOP]
            left = loop.close()
            if left:
                pytest.fail(f"left running: {', '.join(left)}", pytrace=False)
