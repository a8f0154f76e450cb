"""The plug-in that other projects get by installation; here it comes from the tree."""

from router.testing.plugin import llm_router, pytest_configure, pytest_runtest_makereport
from tunnel_protocol.compilation import AS_WRITTEN_BECAUSE


def pytest_report_header() -> str:
    """Which form of the program is tested."""
    return "program: compiled" if AS_WRITTEN_BECAUSE is None else f"program: as written ({AS_WRITTEN_BECAUSE})"


__all__ = ["llm_router", "pytest_configure", "pytest_runtest_makereport"]
