"""A worker that stops dead and says nothing: whoever asked it gets another's answer, or an abnormal end, within deadlines."""

import http.client
import json
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from support.http_client import CHAT
from support.receipts import MODEL

IDLE_MS, HEAD_MS = 1_500, 800


@pytest.mark.chaos
@pytest.mark.llm_router_options(
    f"--quic-idle-timeout-ms={IDLE_MS}", f"--quic-request-timeout-ms={HEAD_MS}", "--compat=0.11"
)
def test_requests_of_a_frozen_worker_go_elsewhere_or_end_abnormally(llm_router):
    frozen = llm_router.add_worker(MODEL, engine_options=["--num-tokens", "1000", "--token-delay-ms", "50"])
    connection = http.client.HTTPConnection(llm_router.ports.http, timeout=10)
    body = json.dumps({"model": MODEL, "stream": True, "max_tokens": 1_000, "messages": []})
    connection.request("POST", CHAT, body, llm_router.headers(MODEL))
    running = connection.getresponse()
    assert running.readline().startswith(b"data: ")
    other = llm_router.add_worker(MODEL)
    frozen.process.send(signal.SIGSTOP)
    try:
        began = time.monotonic()
        with ThreadPoolExecutor(6) as callers:  # at once, so that some are meant for the frozen one
            replies = list(callers.map(lambda _: llm_router.chat(MODEL), range(6)))
        assert [(reply.status, reply.headers["x-inference-server-id"]) for reply in replies] == [(200, other.name)] * 6
        assert all(b"[DONE]" in reply.body for reply in replies)
        with pytest.raises((http.client.IncompleteRead, ConnectionError)):
            running.read()
        assert time.monotonic() - began < 9
    finally:
        frozen.process.kill()
        connection.close()
    retries = f'stargate_proxy_retries_total{{model="{MODEL}",reason="connect_failover",routing_key=""}}'
    assert llm_router.metrics()[retries] >= 1


@pytest.mark.chaos
@pytest.mark.llm_router_options(f"--quic-idle-timeout-ms={IDLE_MS}")
def test_what_a_frozen_worker_may_have_is_502_and_everything_after_it_goes_elsewhere(llm_router):
    frozen = llm_router.add_worker(MODEL)
    other = llm_router.add_worker(MODEL)
    frozen.process.send(signal.SIGSTOP)
    try:
        with ThreadPoolExecutor(6) as callers:
            first = list(callers.map(lambda _: llm_router.chat(MODEL), range(6)))
            later = list(callers.map(lambda _: llm_router.chat(MODEL), range(6)))
    finally:
        frozen.process.kill()
    assert {reply.status for reply in first} <= {200, 502}
    assert [(reply.status, reply.headers["x-inference-server-id"]) for reply in later] == [(200, other.name)] * 6
