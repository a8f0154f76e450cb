"""Runs against the reference binaries: `STARGATE` and `PYLON` name them; what they are needed for is skipped otherwise."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.processes import Stack

LOG_TAIL_CHARACTERS = 6_000


def _binary(variable: str) -> str:
    path = os.environ.get(variable)
    if not path:
        pytest.skip(f"set {variable} to the reference's binary to run this")
    if not Path(path).is_file():
        pytest.fail(f"{variable}={path} is not a file")
    return path


@pytest.fixture(scope="session")
def pylon() -> str:
    return _binary("PYLON")


@pytest.fixture(scope="session")
def stargate() -> str:
    return _binary("STARGATE")


@pytest.fixture
def stack(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Stack]:
    stack = Stack(tmp_path)
    request.node.interop_stack = stack
    yield stack
    stack.stop()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> object:
    report = yield
    stack = getattr(item, "interop_stack", None)
    if stack is not None and report.failed:
        for process in stack.processes:
            report.sections.append((f"log of {process.name}", process.log()[-LOG_TAIL_CHARACTERS:]))
    return report
