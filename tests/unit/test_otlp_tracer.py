"""The tracer with the SDK, without a network: what it exports, what it loses, and that nothing the SDK raises gets out."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from random import Random
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from structlog.testing import capture_logs

from router.telemetry.otlp.access_token import AccessToken
from router.telemetry.otlp.environment import read_environment
from router.telemetry.otlp.tracer import LostSpan, OtlpTracer
from router.telemetry.trace_context import TraceContext
from support.waiting import wait_until

CALLER = TraceContext("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7", sampled=True)


class Collector(SpanExporter):
    """Keeps what is exported; waits for `open` first, or raises."""

    def __init__(self) -> None:
        self.spans: list[ReadableSpan] = []
        self.open = threading.Event()
        self.open.set()
        self.error: Exception | None = None

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.open.wait(10)
        if self.error is not None:
            raise self.error
        self.spans += spans
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        self.open.set()


@contextmanager
def a_tracer(
    monkeypatch: pytest.MonkeyPatch, service_name: str = "stargate", **variables: str
) -> Iterator[tuple[OtlpTracer, Collector]]:
    found = {"OTEL_BSP_SCHEDULE_DELAY": "10", **{f"OTEL_{name}": value for name, value in variables.items()}}
    environment = read_environment(found, "http://127.0.0.1:1")
    for name, value in environment.variables.items():
        monkeypatch.setenv(name, value)
    collector = Collector()
    tracer = OtlpTracer(
        environment,
        AccessToken(None),
        service_name=service_name,
        default_name="stargate",
        attributes={"service.version": "1", "service.instance.id": "pod-0"},
        random=Random(1),
        make_exporter=lambda _: collector,
    )
    yield tracer, collector
    collector.open.set()
    tracer.queue.shutdown()


def span(tracer: OtlpTracer, caller: TraceContext | None = CALLER) -> Any:
    return tracer.start("request", caller, caller or tracer.sampling.decide(None), [b"a=b", b"c=d"], 1)


def test_spans_of_the_sdk_hang_together(monkeypatch: pytest.MonkeyPatch) -> None:
    with a_tracer(monkeypatch) as (tracer, collector):
        request = span(tracer)
        attempt = request.child("attempt", {"a": 1}, 2)
        attempt.event("retry", {"b": "x"}, 3)
        attempt.end({"c": True}, 4, error="broken")
        request.end({}, 5)
        wait_until(lambda: tracer.exporter.exported == 2)
    first, second = collector.spans
    assert (first.name, first.start_time, first.end_time) == ("attempt", 2, 4)
    assert dict(first.attributes or {}) == {"a": 1, "c": True}
    assert (first.status.description, [event.name for event in first.events]) == ("broken", ["retry"])
    assert (second.status.description, request.tracestate, attempt.tracestate) == (None, b"a=b,c=d", b"a=b,c=d")
    assert first.parent is not None
    assert f"{first.parent.span_id:016x}" == request.context.span_id
    assert request.context.trace_id == attempt.context.trace_id == CALLER.trace_id


def test_a_trace_that_begins_here_has_the_id_that_was_decided_on(monkeypatch: pytest.MonkeyPatch) -> None:
    with a_tracer(monkeypatch) as (tracer, _):
        decided = tracer.sampling.decide(None)
        begun = tracer.start("request", None, decided, [b"a=b"], 1)
        assert (begun.context.trace_id, begun.tracestate) == (decided.trace_id, b"")


def test_a_tracestate_that_is_not_valid_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    with a_tracer(monkeypatch) as (tracer, _):
        assert tracer.start("request", CALLER, CALLER, [b"=,\xff"], 1).tracestate == b""


@pytest.mark.parametrize(
    ("option", "variables", "name"),
    [
        ("stargate", {}, "stargate"),
        ("stargate", {"SERVICE_NAME": "edge"}, "edge"),
        ("stargate", {"RESOURCE_ATTRIBUTES": "service.name=edge"}, "edge"),
        ("mine", {"SERVICE_NAME": "edge"}, "mine"),
    ],
)
def test_the_service_name(monkeypatch: pytest.MonkeyPatch, option: str, variables: dict[str, str], name: str) -> None:
    with a_tracer(monkeypatch, option, **variables) as (tracer, _):
        assert tracer.resource.attributes["service.name"] == name


def test_the_environment_wins_over_attributes_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    given = "service.instance.id=other, deployment.environment=test"
    with a_tracer(monkeypatch, RESOURCE_ATTRIBUTES=given) as (tracer, _):
        found = tracer.resource.attributes
    assert (found["service.instance.id"], found["service.version"]) == ("other", "1")
    assert found["deployment.environment"] == "test"


def test_limits_of_the_sdk_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = {"SPAN_ATTRIBUTE_COUNT_LIMIT": "2", "ATTRIBUTE_VALUE_LENGTH_LIMIT": "3"}
    with a_tracer(monkeypatch, **limits) as (tracer, collector):
        span(tracer).end({"a": "12345", "b": "x", "c": "y"}, 2)
        wait_until(lambda: collector.spans)
    assert set((collector.spans[0].attributes or {}).values()) <= {"123", "x", "y"}
    assert len(collector.spans[0].attributes or {}) == 2


def test_a_full_queue_drops_and_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    with a_tracer(monkeypatch, BSP_MAX_QUEUE_SIZE="3", BSP_MAX_EXPORT_BATCH_SIZE="1") as (tracer, collector):
        collector.open.clear()
        span(tracer).end({}, 2)
        wait_until(lambda: tracer.exporter.taken == 1)
        for _ in range(5):
            span(tracer).end({}, 2)
        assert (tracer.queue.left, tracer.queue.dropped) == (3, 2)
        collector.open.set()
        wait_until(lambda: tracer.exporter.exported == 4)


def test_what_an_exporter_raises_is_a_lost_batch_and_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with a_tracer(monkeypatch) as (tracer, collector), capture_logs() as lines:
        collector.error = ValueError("no such value")
        for count in (1, 2):
            span(tracer).end({}, 2)
            wait_until(lambda: tracer.exporter.failed == count)  # noqa: B023
        collector.error = None
        span(tracer).end({}, 2)
        wait_until(lambda: tracer.exporter.exported == 1)
    assert [(line["event"], line.get("error"), line.get("lost_spans")) for line in lines] == [
        ("traces cannot be exported; spans are lost", "ValueError('no such value')", None),
        ("traces are exported again", None, 2),
    ]


def test_nothing_that_the_sdk_raises_gets_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_arguments: object, **_named: object) -> None:
        raise RuntimeError("the SDK has a defect")

    with a_tracer(monkeypatch) as (tracer, _), capture_logs() as lines:
        request = span(tracer)
        monkeypatch.setattr(tracer, "begin", fail)
        lost, child = span(tracer), request.child("attempt", {}, 1)
        monkeypatch.setattr(type(request._span), "add_event", fail)
        monkeypatch.setattr(type(request._span), "set_attributes", fail)
        request.event("retry", {}, 1)
        request.end({}, 2)
    assert isinstance(lost, LostSpan)
    assert (lost.context, lost.tracestate) == (CALLER, b"a=b,c=d")
    assert (child.context, child.tracestate) == (request.context, b"a=b,c=d")
    assert lost.child("attempt", {}, 1) is lost
    lost.event("retry", {}, 1)
    lost.end({}, 2)
    assert [line["log_level"] for line in lines] == ["error"] * 4
