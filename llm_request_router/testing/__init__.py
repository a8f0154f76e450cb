"""A router with workers and mock engines, as real processes on free ports, for tests of this project and of others.

    with System.start() as system:
        system.add_worker("tiny-model")
        ...  # requests to system.url

or, in pytest, with the fixture `llm_router`, a system whose router is running:

    def test_mine(llm_router):
        llm_router.add_worker("tiny-model")

The report of a failed test contains the logs of all processes. See docs/testing.md.
"""

from llm_request_router.testing.processes import Process, ProcessEndedError
from llm_request_router.testing.system import DNS_NAME, Ports, Reply, System, Worker

__all__ = ["DNS_NAME", "Ports", "Process", "ProcessEndedError", "Reply", "System", "Worker"]
