"""Routers that the tests of a file share, and cases on them."""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack

import pytest

from llm_request_router.testing import System
from support.gateway_over_tunnels import CaseOverTunnels


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
    return routers(*marker.args, **marker.kwargs) if marker else routers()


@pytest.fixture
async def case(system: System) -> AsyncIterator[CaseOverTunnels]:
    """A model of its own on the shared router; the workers are played by the test."""
    case = CaseOverTunnels(system)
    yield case
    await case.close()
