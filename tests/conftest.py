"""How async tests run, and the plug-in that other projects get by installation; here it comes from the tree."""

from hypothesis import settings

from llm_request_router.pytest_plugin import llm_router, pytest_configure, pytest_runtest_makereport
from support.async_tests import pytest_fixture_setup, pytest_pyfunc_call, pytest_runtest_teardown
from support.sockets import sockets
from tunnel_protocol.compilation import AS_WRITTEN_BECAUSE

# A busy machine is no failure; what hangs is ended by pytest-timeout.
settings.register_profile("unhurried", settings(), deadline=None)
settings.load_profile("unhurried")


def pytest_report_header() -> str:
    """Which form of the program is tested."""
    return "program: compiled" if AS_WRITTEN_BECAUSE is None else f"program: as written ({AS_WRITTEN_BECAUSE})"


__all__ = [
    "llm_router",
    "pytest_configure",
    "pytest_fixture_setup",
    "pytest_pyfunc_call",
    "pytest_runtest_makereport",
    "pytest_runtest_teardown",
    "sockets",
]
