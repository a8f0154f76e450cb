"""The pytest plug-in: fixture `llm_router`, marker `llm_router_options`, and the processes' logs in failure reports."""

from collections.abc import Generator
from pathlib import Path

import pytest

from llm_request_router.testing import System

_SYSTEM = pytest.StashKey[System]()


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker `llm_router_options`."""
    config.addinivalue_line(
        "markers", "llm_router_options(*options, reverse=True): further command line options for the llm_router fixture"
    )


@pytest.fixture
def llm_router(request: pytest.FixtureRequest, tmp_path: Path) -> Generator[System, None, None]:
    """A running router; add workers with `llm_router.add_worker("model")`."""
    marker = request.node.get_closest_marker("llm_router_options")
    options = marker.args if marker else ()
    reverse = marker.kwargs.get("reverse", True) if marker else True
    system = System.start(*options, reverse=reverse, directory=tmp_path)
    request.node.stash[_SYSTEM] = system
    yield system
    system.close()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add the logs of the processes to the report of a failed test."""
    report = yield
    system = item.stash.get(_SYSTEM, None)
    if report.failed and system is not None:
        report.sections += [(f"log of {name}", log) for name, log in system.logs()]
    return report
