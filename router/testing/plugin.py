"""The old name of the pytest plug-in (`-p router.testing.plugin`)."""

from llm_request_router.pytest_plugin import llm_router, pytest_configure, pytest_runtest_makereport

__all__ = ["llm_router", "pytest_configure", "pytest_runtest_makereport"]
