"""A router with workers and mock engines, as real processes on free ports, for tests of this and of other projects.

    with System.start() as system:
        system.add_worker("tiny-model")
        ...  # requests to system.url

or, in pytest, the fixture `llm_router`, which is such a system with one router running:

    def test_mine(llm_router):
        llm_router.add_worker("tiny-model")

The logs of all processes are part of the report of a failed test. See docs/testing.md.
"""

from llm_request_router.testing.processes import Process, ProcessEndedError
from llm_request_router.testing.system import DNS_NAME, Ports, Reply, System, Worker

__all__ = ["DNS_NAME", "Ports", "Process", "ProcessEndedError", "Reply", "System", "Worker"]
