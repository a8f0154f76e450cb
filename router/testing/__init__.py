"""The old import name of the test system of real processes, which is in `llm_request_router.testing`."""

from llm_request_router.testing import DNS_NAME, Ports, Process, ProcessEndedError, Reply, System, Worker

__all__ = ["DNS_NAME", "Ports", "Process", "ProcessEndedError", "Reply", "System", "Worker"]
