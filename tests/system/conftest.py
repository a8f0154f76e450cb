"""Cases, and the routers that the cases of a file share."""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from llm_request_router.testing import System
from support.cases import Case, CaseInMemory, CaseOverTunnels, options_of
from support.gateway_in_memory import gateway_in_memory

LOOPS = {"memory": "uvloop", "tunnels": "grpc"}
"""By harness: the loop that it needs."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that asks for a case runs on both harnesses, or on the one that its marker names."""
    if "case" in metafunc.fixturenames:
        marker = next(metafunc.definition.iter_markers("harness"), None)
        names = marker.args if marker else LOOPS
        harnesses = [pytest.param(name, marks=pytest.mark.loop(LOOPS[name])) for name in names]
        metafunc.parametrize("case", harnesses, indirect=True)


def settings_of(request: pytest.FixtureRequest) -> tuple[dict[str, Any], bool]:
    """What `@pytest.mark.gateway` sets, and whether workers dial in."""
    marker = request.node.get_closest_marker("gateway")
    settings = dict(marker.kwargs) if marker else {}
    return settings, settings.pop("reverse", True)


@pytest.fixture(scope="module")
def routers() -> Iterator[Callable[..., System]]:
    """The running router with these options; one for the whole file."""
    with ExitStack() as stack:
        started: dict[tuple[object, ...], System] = {}

        def router(*options: str, reverse: bool) -> System:
            if (options, reverse) not in started:
                started[options, reverse] = stack.enter_context(System.start(*options, reverse=reverse))
            return started[options, reverse]

        yield router


@pytest.fixture
def system(request: pytest.FixtureRequest, routers: Callable[..., System]) -> System:
    """The shared router with the settings of the test."""
    settings, reverse = settings_of(request)
    return routers(*options_of(**settings), reverse=reverse)


@pytest.fixture
async def case(request: pytest.FixtureRequest) -> AsyncIterator[Case]:
    """A model of its own on a gateway in memory, or on the shared router; the workers are played by the test."""
    if request.param == "tunnels":
        over_tunnels = CaseOverTunnels(request.getfixturevalue("system"))
        yield over_tunnels
        await over_tunnels.close()
        return
    settings, reverse = settings_of(request)
    async with gateway_in_memory(**settings) as gateway:
        in_memory = CaseInMemory(gateway, reverse=reverse)
        yield in_memory
        await in_memory.close()
