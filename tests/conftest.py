"""The plug-in that other projects get by installation; here it comes from the tree."""

from router.testing.plugin import llm_router, pytest_configure, pytest_runtest_makereport

__all__ = ["llm_router", "pytest_configure", "pytest_runtest_makereport"]
