"""The old import name of `llm_request_router.testing.system`."""

from llm_request_router.testing.system import DNS_NAME, Ports, Reply, System, Worker

__all__ = ["DNS_NAME", "Ports", "Reply", "System", "Worker"]
