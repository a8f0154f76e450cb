"""The name under which tests have always imported a system of real processes; it lives in `llm_request_router.testing`."""

from llm_request_router.testing import DNS_NAME, Ports, Process, ProcessEndedError, Reply, System, Worker

__all__ = ["DNS_NAME", "Ports", "Process", "ProcessEndedError", "Reply", "System", "Worker"]
