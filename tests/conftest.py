"""How async tests run, and the plug-in that other projects get by installation; here it comes from the tree."""

import os

import pytest
from hypothesis import settings

from llm_request_router.pytest_plugin import llm_router, pytest_configure, pytest_runtest_makereport
from support.async_tests import pytest_fixture_setup, pytest_pyfunc_call, pytest_runtest_teardown
from support.sockets import sockets
from tunnel_protocol import compilation

# A busy machine is no failure; what hangs is ended by pytest-timeout.
settings.register_profile("unhurried", settings(), deadline=None)
settings.load_profile("unhurried")


def pytest_report_header() -> str:
    """Which form of the program is tested."""
    return f"program: {compilation.description()}"


def pytest_sessionstart(session: pytest.Session) -> None:
    """Where the compiled form is required, no other is tested by mistake; `LLM_ROUTER_PURE_PYTHON` is on purpose."""
    reporter = session.config.pluginmanager.getplugin("terminalreporter")
    if reporter is not None and session.config.get_verbosity() < 0:  # such a run has no header
        reporter.write_line(pytest_report_header())
    required = os.environ.get("LLM_ROUTER_COMPILE") == "require" and not compilation.asked_for(os.environ)
    if required and compilation.AS_WRITTEN_BECAUSE is not None:
        raise pytest.UsageError(f"LLM_ROUTER_COMPILE is require, but the program runs {compilation.description()}")


__all__ = [
    "llm_router",
    "pytest_configure",
    "pytest_fixture_setup",
    "pytest_pyfunc_call",
    "pytest_runtest_makereport",
    "pytest_runtest_teardown",
    "sockets",
]
