"""What is recorded of a request: its spans, how they hang together, their attributes, and what its worker is told."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from router.proxy.request_trace import ATTEMPT, REQUEST, ProxyTracing
from support.gateway_in_memory import GatewayInMemory, PlayedExchange, gateway_in_memory
from support.http_client import post
from support.recorded_traces import RecordedSpan, RecordingTracer
from support.waiting import eventually

pytestmark = pytest.mark.loop("uvloop")

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
CALLER = f"00-{TRACE}-{SPAN}-01"
NOT_SAMPLED = f"00-{TRACE}-{SPAN}-00"


def ok(exchange: PlayedExchange) -> None:
    exchange.answer()


def broken(exchange: PlayedExchange) -> None:
    exchange.fail()


@asynccontextmanager
async def traced(
    tracer: RecordingTracer, config: bytes | None = None, **settings: Any
) -> AsyncIterator[GatewayInMemory]:
    async with gateway_in_memory(config, **settings) as harness:
        harness.proxy.tracing = ProxyTracing(tracer, harness.registry, asyncio.get_running_loop().time)
        yield harness


async def ended(tracer: RecordingTracer) -> tuple[RecordedSpan, list[RecordedSpan]]:
    """The span of the only request, and those of its attempts."""
    await eventually(lambda: tracer.spans and all(span.ended for span in tracer.spans))
    (request,) = tracer.named(REQUEST)
    return request, tracer.named(ATTEMPT)


async def test_request_and_attempt_hang_together_and_the_worker_below_the_attempt() -> None:
    tracer = RecordingTracer()
    async with traced(tracer) as harness:
        worker = harness.worker("a", on_request=ok)
        got = await harness.ask(post(traceparent=CALLER, tracestate="a=b", baggage="x=1"))
        assert got.status == 200
        request, (attempt,) = await ended(tracer)
        assert (request.context.trace_id, request.parent) == (TRACE, SPAN)
        assert (attempt.context.trace_id, attempt.parent) == (TRACE, request.context.span_id)
        told = worker.exchanges[0]
        assert told.header("traceparent") == f"00-{TRACE}-{attempt.context.span_id}-01"
        assert (told.header("tracestate"), told.header("baggage")) == ("a=b", "x=1")


async def test_the_attributes_are_those_of_the_reference() -> None:
    tracer = RecordingTracer()
    async with traced(tracer) as harness:
        harness.worker("a", on_request=ok, queue_size=3, kv_cache_free_tokens=7, max_output_tps=2.5)
        await harness.ask(
            post(
                x_input_tokens="50",
                x_priority="4",
                x_max_wait_ms="9",
                x_request_slo_ms="8",
                x_routing_method="power_of_two",
            )
        )
        request, (attempt,) = await ended(tracer)
    found = request.attributes
    for name in ("selected_inst.rtt_ms", "selected_inst.snapshot_age_ms", "proxy.time_to_first_byte_ms"):
        assert 0 <= found.pop(name) < 30_000
    assert 0 <= attempt.attributes.pop("proxy.time_to_first_byte_ms") < 30_000
    assert found == {
        "request.endpoint": "chat_completions",
        "request.routing_key": "",
        "request.model_id": "m",
        "request.path": "/v1/chat/completions",
        "request.input_tokens": "50",
        "request.priority": "4",
        "request.max_wait_ms": "9",
        "request.slo_ms": "8",
        "request.cache_affinity_key_present": False,
        "routing.requested_algorithm": "power_of_two",
        "routing.algorithm": "power-of-n",
        "routing.num_candidates": "1",
        "routing.rank_depth": 1,
        "routing.selected_after_kv_free_tokens_skip": False,
        "routing.comparator": "ttft",
        "routing.sample_count_configured": "2",
        "routing.sample_count_effective": "1",
        "routing.retry_attempts": "0",
        "selected_cluster.id": "a",
        "selected_inst.id": "a",
        "selected_inst.output_tps": 10.0,
        "selected_inst.last_mean_input_tps": 1000.0,
        "selected_inst.max_output_tps": 2.5,
        "selected_inst.queue_size": "3",
        "selected_inst.queued_input_size": "0",
        "selected_inst.num_running_queries": "0",
        "selected_inst.max_engine_concurrency": "0",
        "selected_inst.total_query_input_size": "0",
        "selected_inst.kv_cache_capacity_tokens": "0",
        "selected_inst.kv_cache_used_tokens": "0",
        "selected_inst.kv_cache_free_tokens": "7",
        "proxy.queue.expected_ms": 0,
        "proxy.upstream_status": "200",
        "proxy.replay_body_bytes": 2,
        "proxy.attempt": 1,
        "proxy.connect_attempts": 0,
        "proxy.request_retries": 0,
        "proxy.failed_backends": 0,
        "proxy.end": "complete",
        "http.response.status_code": 200,
    }
    assert attempt.attributes == {
        "request.endpoint": "chat_completions",
        "http.method": "POST",
        "http.path": "/v1/chat/completions",
        "proxy.attempt": 1,
        "selected_cluster.id": "a",
        "selected_inst.id": "a",
        "routing.algorithm": "power-of-n",
        "proxy.queue.expected_ms": 0,
        "proxy.queue.expected_present": True,
        "proxy.upstream_status": "200",
        "http.response.status_code": 200,
    }
    assert (request.error, attempt.error, request.events) == (None, None, [])


async def test_a_routing_expression_is_recorded_as_it_came_with_what_it_chose() -> None:
    tracer = RecordingTracer()
    async with traced(tracer) as harness:
        harness.worker("a", on_request=ok)
        got = await harness.ask(
            post("/v1/messages", x_routing_method="Power-Of-N; sample_count=1;comparator=queue-time")
        )
        assert got.status == 200
        request, _ = await ended(tracer)
    assert request.attributes["routing.requested_algorithm"] == "Power-Of-N; sample_count=1;comparator=queue-time"
    assert request.attributes["routing.algorithm"] == "power-of-n"
    assert request.attributes["routing.comparator"] == "queue-time"
    assert request.attributes["routing.sample_count_configured"] == "1"
    assert request.attributes["request.endpoint"] == "messages"


async def test_an_algorithm_without_comparator_has_none() -> None:
    tracer = RecordingTracer()
    async with traced(tracer, b'{"default": "round-robin"}') as harness:
        harness.worker("a", on_request=ok)
        assert (await harness.ask(post())).status == 200
        request, _ = await ended(tracer)
    assert "routing.comparator" not in request.attributes
    assert "routing.sample_count_configured" not in request.attributes


async def test_each_attempt_has_a_span_of_its_own() -> None:
    tracer = RecordingTracer()
    async with traced(tracer, compat="0.11") as harness:
        first = harness.worker("a", on_request=broken)
        second = harness.worker("b", on_request=ok, queue_size=9, queued_input_size=9000)
        assert (await harness.ask(post(traceparent=CALLER))).status == 200
        request, (failed, succeeded) = await ended(tracer)
        told = [worker.exchanges[0].header("traceparent") for worker in (first, second)]
    assert told == [f"00-{TRACE}-{attempt.context.span_id}-01" for attempt in (failed, succeeded)]
    assert failed.error == "stream reset by peer"
    assert failed.attributes["proxy.error"] == "502"
    assert "proxy.upstream_status" not in failed.attributes
    assert (succeeded.error, succeeded.attributes["proxy.attempt"]) == (None, 2)
    assert (request.error, request.attributes["proxy.attempt"]) == (None, 2)
    assert request.attributes["selected_inst.id"] == "b"
    assert request.attributes["proxy.connect_attempts"] == 1
    assert request.attributes["proxy.failed_backends"] == 1
    assert request.attributes["proxy.retry_reason"] == "connect_failover"
    assert request.events == [("retry", {"proxy.retry_reason": "connect_failover"})]


async def test_a_retried_answer_ends_its_attempt() -> None:
    tracer = RecordingTracer()
    async with traced(tracer) as harness:
        harness.worker("a", on_request=lambda exchange: exchange.reject(503))
        harness.worker("b", on_request=ok, queue_size=9, queued_input_size=9000)
        assert (await harness.ask(post())).status == 200
        request, (rejected, _) = await ended(tracer)
    assert rejected.attributes["proxy.upstream_status"] == "503"
    assert rejected.error == "status 503"
    assert request.attributes["proxy.upstream_status"] == "200"
    assert request.attributes["proxy.request_retries"] == 1
    assert request.error is None


@pytest.mark.parametrize(
    ("answer", "status", "upstream", "error"),
    [
        (broken, 502, "502", "stream reset by peer"),
        (lambda exchange: exchange.answer(500), 500, "500", "status 500"),
        (lambda exchange: exchange.answer(404), 404, "404", None),
    ],
)
async def test_the_status_of_the_spans_is_that_of_the_answer(
    answer: Any, status: int, upstream: str, error: str | None
) -> None:
    tracer = RecordingTracer()
    async with traced(tracer, max_connect_retries=0) as harness:
        harness.worker("a", on_request=answer)
        assert (await harness.ask(post())).status == status
        request, (attempt,) = await ended(tracer)
    assert request.attributes["proxy.upstream_status"] == upstream
    assert request.attributes["http.response.status_code"] == status
    assert (request.error, attempt.error) == (error, error)


async def test_a_response_that_breaks_off_is_an_error() -> None:
    tracer = RecordingTracer()
    async with traced(tracer) as harness:
        worker = harness.worker("a")
        client = await harness.client()
        client.send(post())
        exchange = await worker.next()
        exchange.head()
        exchange.body(b"half")
        await client.head()
        assert not any(span.ended for span in tracer.spans)
        exchange.fail("idle timeout")
        request, (attempt,) = await ended(tracer)
    assert (request.error, attempt.error) == ("idle timeout", "idle timeout")
    assert request.attributes["proxy.end"] == "truncated"


async def test_a_client_that_closes_is_no_error() -> None:
    tracer = RecordingTracer()
    async with traced(tracer) as harness:
        worker = harness.worker("a")
        client = await harness.client()
        client.send(post())
        await worker.next()
        client.leave()
        request, (attempt,) = await ended(tracer)
    assert (request.error, attempt.error) == (None, None)
    assert request.attributes["proxy.end"] == "client_gone"
    assert "http.response.status_code" not in request.attributes


async def test_requests_that_reach_no_worker_have_one_span() -> None:
    tracer = RecordingTracer()
    policy = b'{"models": {"m": {"algorithm": "power-of-n", "max_input_work_seconds": 0.5}}}'
    async with traced(tracer, policy) as harness:
        harness.worker("a", queued_input_size=100, last_mean_input_tps=100.0)
        assert (await harness.ask(post(x_input_tokens="50"))).status == 503
        request, attempts = await ended(tracer)
        assert request.attributes["routing.admission_rejection_reason"] == "input_work_limit_exceeded"
        assert (request.error, attempts) == ("status 503", [])
        tracer.spans.clear()
        assert (await harness.ask(post(model="unknown"))).status == 404
        request, attempts = await ended(tracer)
        assert (request.error, attempts) == (None, [])
        assert request.attributes["proxy.end"] == "refused"
        assert "routing.num_candidates" not in request.attributes


@pytest.mark.parametrize(
    ("headers", "requested", "invalid", "reason"),
    [
        ({"x_input_tokens": "many"}, None, None, "invalid x-input-tokens"),
        ({"x_routing_method": " no-such "}, "no-such", "no-such", "unknown x-routing-method"),
        ({"x_routing_method": "caf\xe9"}, "<invalid-utf8>", "<invalid-utf8>", "unknown x-routing-method"),
        (
            {"x_routing_method": "pulsar; widen=2"},
            "pulsar; widen=2",
            "pulsar; widen=2",
            "invalid x-routing-method",
        ),
        ({"x_routing_method": "random", "x_priority": "-"}, "random", None, "invalid x-priority"),
    ],
)
async def test_a_request_that_is_not_valid_has_a_span(
    headers: dict[str, str], requested: str | None, invalid: str | None, reason: str
) -> None:
    tracer = RecordingTracer()
    async with traced(tracer) as harness:
        assert (await harness.ask(post(traceparent=CALLER, tracestate="a=b", **headers))).status == 400
        request, _ = await ended(tracer)
    assert (request.parent, request.tracestate) == (SPAN, b"a=b")
    assert request.attributes.get("routing.requested_algorithm") == requested
    assert request.attributes.get("routing.invalid_requested_algorithm") == invalid
    assert request.attributes["proxy.refusal_reason"] == reason
    assert request.attributes["http.response.status_code"] == 400


# --- not sampled


async def test_what_the_caller_does_not_sample_passes_as_it_came() -> None:
    tracer = RecordingTracer()
    async with traced(tracer) as harness:
        worker = harness.worker("a", on_request=ok)
        await harness.ask(post(traceparent=NOT_SAMPLED, tracestate="a=b"))
        await harness.ask(post(traceparent=NOT_SAMPLED, x_input_tokens="many"))
    assert tracer.spans == []
    assert worker.exchanges[0].header("traceparent") == NOT_SAMPLED
    assert worker.exchanges[0].header("tracestate") == "a=b"


async def test_a_worker_is_told_that_the_trace_that_begins_here_is_not_sampled() -> None:
    tracer = RecordingTracer(share=0.0)
    async with traced(tracer) as harness:
        worker = harness.worker("a", on_request=ok)
        await harness.ask(post(traceparent="not valid", tracestate="a=b"))
        told = worker.exchanges[0].header("traceparent") or ""
    assert tracer.spans == []
    assert told.startswith("00-")
    assert told.endswith("-00")
    assert worker.exchanges[0].header("tracestate") is None


async def test_a_request_without_context_gets_one_header_more() -> None:
    tracer = RecordingTracer(share=0.0)
    async with traced(tracer) as harness:
        worker = harness.worker("a", on_request=ok)
        await harness.ask(post())
        told = worker.exchanges[0].header("traceparent") or ""
        assert told.endswith("-00")
        await harness.ask(post(tracestate="a=b"))
    assert tracer.spans == []
    assert worker.exchanges[1].header("traceparent") not in (None, told)
    assert worker.exchanges[1].header("tracestate") is None


async def test_a_context_of_a_later_version_that_is_not_sampled_passes_too() -> None:
    tracer = RecordingTracer()
    async with traced(tracer) as harness:
        worker = harness.worker("a", on_request=ok)
        await harness.ask(post(traceparent=f"cc-{TRACE}-{SPAN}-00-later"))
    assert tracer.spans == []
    assert worker.exchanges[0].header("traceparent") == f"cc-{TRACE}-{SPAN}-00-later"


async def test_a_sampler_that_overrules_the_caller_changes_only_the_flag() -> None:
    tracer = RecordingTracer(share=0.0, parent_based=False)
    async with traced(tracer) as harness:
        worker = harness.worker("a", on_request=broken)
        harness.worker("b", on_request=lambda exchange: exchange.reject(503), queue_size=9, queued_input_size=9000)
        await harness.ask(post(traceparent=CALLER, tracestate="a=b"))
        assert worker.exchanges[0].header("traceparent") == NOT_SAMPLED
        assert worker.exchanges[0].header("tracestate") == "a=b"
    assert tracer.spans == []


async def test_an_unsampled_request_is_served_whatever_happens_to_it() -> None:
    tracer = RecordingTracer(share=0.0)
    policy = b'{"models": {"n": {"algorithm": "power-of-n", "max_input_work_seconds": 0.5}}}'
    async with traced(tracer, policy) as harness:
        harness.worker("a", model="n", queued_input_size=100, last_mean_input_tps=100.0)
        assert (await harness.ask(post(model="n", x_input_tokens="50"))).status == 503
        worker = harness.worker("b")
        client = await harness.client()
        client.send(post())
        exchange = await worker.next()
        exchange.head()
        await client.head()
        exchange.fail()
        assert await client.closed()


@pytest.mark.parametrize(
    ("path", "endpoint"),
    [
        ("/v1/chat/completions", "chat_completions"),
        ("/v1/responses", "responses"),
        ("/v1/embeddings", "embeddings"),
        ("/v1/messages", "messages"),
    ],
)
async def test_each_path_is_an_endpoint_of_its_own(path: str, endpoint: str) -> None:
    tracer = RecordingTracer()
    async with traced(tracer) as harness:
        harness.worker("a", on_request=ok)
        assert (await harness.ask(post(path))).status == 200
        request, (attempt,) = await ended(tracer)
    assert (request.attributes["request.endpoint"], attempt.attributes["request.endpoint"]) == (endpoint, endpoint)


# --- bounds


async def test_a_long_text_is_cut() -> None:
    tracer = RecordingTracer()
    async with traced(tracer) as harness:
        harness.worker("a", model="m" * 1024, on_request=ok)
        await harness.ask(post("/v1/embeddings?" + "q" * 5_000, model="m" * 1024))
        request, (attempt,) = await ended(tracer)
        tracer.spans.clear()
        await harness.ask(post(x_routing_method="x" * 5_000))
        refused, _ = await ended(tracer)
    assert len(request.attributes["request.model_id"]) == 1024
    assert len(attempt.attributes["http.path"]) == 1024
    assert request.attributes["request.endpoint"] == "embeddings"
    assert len(refused.attributes["routing.requested_algorithm"]) == 1024


async def test_an_estimate_that_no_attribute_can_hold_is_cut() -> None:
    tracer = RecordingTracer()
    async with traced(tracer) as harness:
        harness.worker("a", on_request=ok, queue_time_estimate_ms_by_priority={0: (1 << 64) - 1})
        assert (await harness.ask(post())).status == 200
        request, (attempt,) = await ended(tracer)
    assert request.attributes["proxy.queue.expected_ms"] == (1 << 63) - 1
    assert attempt.attributes["proxy.queue.expected_ms"] == (1 << 63) - 1


async def test_a_reason_that_has_no_utf8_form_is_made_sendable() -> None:
    tracer = RecordingTracer()
    async with traced(tracer, max_connect_retries=0) as harness:
        harness.worker("a", on_request=lambda exchange: exchange.fail("peer said \udcff"))
        assert (await harness.ask(post())).status == 502
        request, _ = await ended(tracer)
    assert request.error == "peer said ?"
