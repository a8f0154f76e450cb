"""One trace from a client through our router to the reference's worker, in a collector that both export to."""

import http.client
import json

import pytest

from support.otlp_receiver import OtlpReceiver
from support.processes import INTEROP_MODEL, OURS, RouterProcess, Stack, worker_arguments
from support.waiting import wait_until

pytestmark = pytest.mark.interop

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
ROUTER_ROOT, ATTEMPT, WORKER = "proxy_openai_request", "proxy_upstream_http_request", "pylon_upstream_http_request"


def chat(router: RouterProcess, **headers: str) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", router.http, timeout=15)
    body = json.dumps({"model": INTEROP_MODEL, "stream": True, "messages": [{"role": "user", "content": "hi"}]})
    found = {
        "content-type": "application/json",
        "x-request-id": "traced",
        "x-model": INTEROP_MODEL,
        "x-input-tokens": "1",
    }
    connection.request("POST", "/v1/chat/completions?trace=1", body, {**found, **headers})
    with connection.getresponse() as answer:
        assert answer.status == 200
        answer.read()
    connection.close()


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_client_router_and_pylon_are_one_trace(
    stack: Stack, pylon: str, monkeypatch: pytest.MonkeyPatch, protocol: str
) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
    with OtlpReceiver() as receiver:
        of_pylon = f"--otel-endpoint={receiver.grpc_url}"
        if protocol == "grpc":
            of_router = of_pylon
        else:
            of_router = f"--otel-endpoint={receiver.http_url}"
            monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", protocol)
        engine = stack.engine()
        router = stack.router(OURS, extra=[of_router])
        stack.start("pylon", [pylon, *worker_arguments(engine, router.grpc, extra=[of_pylon])])
        wait_until(router.serves, 20, "a request is served")
        for flags in ("01", "03"):
            receiver.spans.clear()
            chat(router, traceparent=f"00-{TRACE}-{SPAN}-{flags}", tracestate="vendor=1")

            def of_the_trace(name: str) -> list[str]:
                return [span.span_id for span in receiver.named(name) if span.trace_id == TRACE]

            wait_until(
                lambda: all(of_the_trace(name) for name in (ROUTER_ROOT, ATTEMPT, WORKER)),
                15,
                "all spans",
            )
            spans = {span.name: span for span in receiver.spans if span.trace_id == TRACE}
            assert spans[ROUTER_ROOT].parent_id == SPAN
            assert spans[ATTEMPT].parent_id == spans[ROUTER_ROOT].span_id
            assert spans[WORKER].parent_id == spans[ATTEMPT].span_id
            assert {spans[name].trace_state for name in (ROUTER_ROOT, ATTEMPT, WORKER)} == {"vendor=1"}
            assert spans[WORKER].resource["service.name"] == "pylon"


def test_pylon_does_not_sample_what_our_router_does_not(
    stack: Stack, pylon: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with OtlpReceiver() as receiver:
        engine = stack.engine()
        exported = f"--otel-endpoint={receiver.grpc_url}"
        with monkeypatch.context() as of_router:
            of_router.setenv("OTEL_TRACES_SAMPLER", "parentbased_always_off")
            router = stack.router(OURS, extra=[exported])
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
        stack.start("pylon", [pylon, *worker_arguments(engine, router.grpc, extra=[exported])])
        wait_until(router.serves, 20, "a request is served")
        chat(router)
        chat(router, traceparent=f"00-{TRACE}-{SPAN}-01")
        wait_until(lambda: receiver.named(WORKER), 15, "the span of the sampled request")
        assert {span.trace_id for span in receiver.spans} == {TRACE}
