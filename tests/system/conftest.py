"""Routers that the tests of a file share, and cases on them."""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from llm_request_router.testing import System
from support.cases import Case, CaseInMemory, CaseOverTunnels, options_of
from support.gateway_in_memory import gateway_in_memory


@pytest.fixture(scope="module")
def routers() -> Iterator[Callable[..., System]]:
    """The running router with these options; one for the whole file."""
    with ExitStack() as stack:
        started: dict[tuple[object, ...], System] = {}

        def router(*options: str, reverse: bool = True) -> System:
            if (options, reverse) not in started:
                started[options, reverse] = stack.enter_context(System.start(*options, reverse=reverse))
            return started[options, reverse]

        yield router


@pytest.fixture
def system(request: pytest.FixtureRequest, routers: Callable[..., System]) -> System:
    """The shared router that `@pytest.mark.llm_router_options` describes."""
    marker = request.node.get_closest_marker("llm_router_options")
    if marker is not None:
        return routers(*marker.args, **marker.kwargs)
    settings, reverse = settings_of(request)
    return routers(*options_of(**settings), reverse=reverse)


def settings_of(request: pytest.FixtureRequest) -> tuple[dict[str, Any], bool]:
    """What `@pytest.mark.gateway` sets, and whether workers dial in."""
    marker = request.node.get_closest_marker("gateway")
    settings = dict(marker.kwargs) if marker else {}
    return settings, settings.pop("reverse", True)


HARNESSES = {"memory": "uvloop", "tunnels": "grpc"}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that asks for a case runs on both harnesses, or on the one that its marker names."""
    if "case" in metafunc.fixturenames:
        marker = next(metafunc.definition.iter_markers("harness"), None)
        names = marker.args if marker else HARNESSES
        loops = [pytest.param(name, marks=pytest.mark.loop(HARNESSES[name])) for name in names]
        metafunc.parametrize("case", loops, indirect=True)


@pytest.fixture
async def case(request: pytest.FixtureRequest) -> AsyncIterator[Case]:
    """A model of its own on a gateway in memory, or on the shared router; the workers are played by the test."""
    if request.param == "memory":
        settings, reverse = settings_of(request)
        async with gateway_in_memory(**settings) as gateway:
            case: Case = CaseInMemory(gateway, reverse=reverse)
            yield case
            await case.close()
    else:
        case = CaseOverTunnels(request.getfixturevalue("system"))
        yield case
        await case.close()
