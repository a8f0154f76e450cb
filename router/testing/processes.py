"""The name under which tests have always imported these; they live in `llm_request_router.testing.processes`."""

from llm_request_router.testing.processes import Process, ProcessEndedError

__all__ = ["Process", "ProcessEndedError"]
