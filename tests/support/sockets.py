"""Tests of `tests/unit` and `tests/property` use no socket: one that does fails where it does."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

WITHOUT = {"unit", "property"}
_TESTS = Path(__file__).parents[1]
_refused = False


def _watch(event: str, _arguments: tuple[object, ...]) -> None:
    if _refused and event in {"socket.bind", "socket.connect", "socket.sendto"}:
        raise AssertionError(f"{event} in a test that is to use no socket")


sys.addaudithook(_watch)


@pytest.fixture(autouse=True)
def sockets(request: pytest.FixtureRequest) -> Iterator[None]:
    """Refuse them where the directory says that there are none."""
    global _refused
    place = request.path.relative_to(_TESTS) if request.path.is_relative_to(_TESTS) else Path()
    _refused = bool(WITHOUT.intersection(place.parts[:1]))
    yield
    _refused = False
