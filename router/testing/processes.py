"""The old import name of `llm_request_router.testing.processes`."""

from llm_request_router.testing.processes import Process, ProcessEndedError

__all__ = ["Process", "ProcessEndedError"]
