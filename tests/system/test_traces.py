"""Export of traces by a real router: to collectors that take spans, refuse, hang or are not there, and without the SDK."""

import asyncio
import json
import signal
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

import certs
from llm_request_router.testing import System
from support.cases import CaseOverTunnels
from support.otlp_receiver import Behaviour, OtlpReceiver
from support.waiting import wait_until

REQUEST, ATTEMPT = "proxy_openai_request", "proxy_upstream_http_request"
TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
CALLER = f"00-{TRACE}-{SPAN}-01"
SOON = {"OTEL_BSP_SCHEDULE_DELAY": "50"}
FLUSHED_WITHIN_S = 2.0


@pytest.fixture
def receiver() -> Iterator[OtlpReceiver]:
    with OtlpReceiver() as receiver:
        yield receiver


@contextmanager
def router(endpoint: str | None, *options: str, **variables: str) -> Iterator[System]:
    """A router that exports to `endpoint`, without workers."""
    flag = () if endpoint is None else (f"--otel-endpoint={endpoint}",)
    environment = {**SOON, "RUST_LOG": "info", **variables}
    with System.start(*flag, *options, environment=environment) as system:
        yield system


def ask(system: System, number: int = 1, **headers: str) -> None:
    """Requests for a model that nobody serves: each is one span."""
    for _ in range(number):
        assert system.request("POST", "/v1/responses", headers={**system.headers("nobody"), **headers}).status == 404


def counted(system: System, result: str) -> float:
    return system.metrics().get(f'stargate_trace_spans_total{{result="{result}"}}', 0)


def stopped_within(system: System) -> float:
    """End the router by SIGTERM; the seconds it took."""
    began = time.monotonic()
    system.router.send(signal.SIGTERM)
    assert system.router.wait() == 0
    return time.monotonic() - began


def lines(system: System, text: str) -> list[str]:
    return [line for line in system.router.log().splitlines() if text in line]


# --- spans


@pytest.mark.loop("grpc")
@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
async def test_the_trace_of_a_caller_goes_on_to_the_worker(receiver: OtlpReceiver, protocol: str) -> None:
    url = receiver.grpc_url if protocol == "grpc" else receiver.http_url
    variables = {
        "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
        "OTEL_EXPORTER_OTLP_HEADERS": "x-tenant=blue",
        "OTEL_EXPORTER_OTLP_COMPRESSION": "gzip",
        "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment=test",
    }
    with router(url, **variables) as system:
        case = CaseOverTunnels(system)
        worker = await case.worker()
        client = await case.send(case.post(traceparent=CALLER, tracestate="a=b,c=d"))
        at_worker = await worker.next_request()
        at_worker.answer()
        assert (await client.answer()).status == 200
        (request,), (attempt,) = receiver.wait_for(REQUEST), receiver.wait_for(ATTEMPT)
        wait_until(lambda: counted(system, "exported") == 2, 5, "both are counted")
        await case.close()
    assert (request.trace_id, request.parent_id, request.kind) == (TRACE, SPAN, "SERVER")
    assert (attempt.trace_id, attempt.parent_id, attempt.kind) == (TRACE, request.span_id, "CLIENT")
    assert at_worker.header("traceparent") == f"00-{TRACE}-{attempt.span_id}-01"
    assert at_worker.header("tracestate") == "a=b,c=d"
    assert (request.trace_state, attempt.trace_state) == ("a=b,c=d", "a=b,c=d")
    assert request.attributes["selected_inst.id"] == case.id("a")
    assert 0 < attempt.duration_ms <= request.duration_ms < 10_000
    assert (request.headers["x-tenant"], request.scope) == ("blue", "stargate")
    named = {name: request.resource[name] for name in ("service.name", "service.instance.id", "deployment.environment")}
    assert named == {
        "service.name": "stargate",
        "service.instance.id": "test-router",
        "deployment.environment": "test",
    }


def test_what_is_queued_at_the_end_is_exported(receiver: OtlpReceiver) -> None:
    with router(receiver.grpc_url, OTEL_BSP_SCHEDULE_DELAY="60000") as system:
        ask(system, 5)
        assert receiver.spans == []
        assert stopped_within(system) < FLUSHED_WITHIN_S
    assert len(receiver.named(REQUEST)) == 5
    assert len({span.trace_id for span in receiver.spans}) == 5


@pytest.mark.parametrize("https", [False, True])
def test_the_endpoint_of_the_environment_and_a_private_root(tmp_path: Path, https: bool) -> None:
    identity = certs.make_self_signed(["localhost"])
    root = tmp_path / "root.pem"
    root.write_bytes(identity.cert_pem)
    credentials = grpc.ssl_server_credentials([(identity.key_pem, identity.cert_pem)]) if https else None
    with OtlpReceiver(credentials) as receiver:
        url = f"http{'s' if https else ''}://localhost:{receiver.grpc_port}"
        variables = {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": url, "OTEL_EXPORTER_OTLP_CERTIFICATE": str(root)}
        with router(None, **variables) as system:
            ask(system)
            receiver.wait_for(REQUEST)


def test_one_in_a_hundred(receiver: OtlpReceiver) -> None:
    sampler = {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.01"}
    with router(receiver.grpc_url, **sampler) as system:
        ask(system, 300)
        ask(system, 3, traceparent=CALLER)
        stopped_within(system)
    of_the_caller = [span for span in receiver.spans if span.trace_id == TRACE]
    assert len(of_the_caller) == 3
    assert len(receiver.spans) - len(of_the_caller) < 20


# --- the token


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_a_replaced_token_is_used_for_the_next_batch(receiver: OtlpReceiver, tmp_path: Path, protocol: str) -> None:
    secrets = tmp_path / "secrets.json"
    secrets.write_text(json.dumps({"tracingAccessToken": "first"}))
    url = receiver.grpc_url if protocol == "grpc" else receiver.http_url
    with router(url, f"--secrets-path={secrets}", OTEL_EXPORTER_OTLP_PROTOCOL=protocol) as system:
        ask(system)
        receiver.wait_for(REQUEST)
        secrets.write_text(json.dumps({"tracingAccessToken": " second\n"}))
        ask(system)
        receiver.wait_for(REQUEST, 2)
        secrets.unlink()
        ask(system)
        receiver.wait_for(REQUEST, 3)
        assert lines(system, "unauthenticated") == []
        assert "first" not in system.router.log()
    assert [span.headers["lightstep-access-token"] for span in receiver.spans] == ["first", "second", "second"]


@pytest.mark.parametrize("content", [None, '{"tracingAccessToken": " "}'])
def test_without_a_token_the_export_is_unauthenticated(
    receiver: OtlpReceiver, tmp_path: Path, content: str | None
) -> None:
    secrets = tmp_path / "secrets.json"
    if content is not None:
        secrets.write_text(content)
    with router(receiver.grpc_url, f"--secrets-path={secrets}") as system:
        ask(system)
        (span,) = receiver.wait_for(REQUEST)
        assert len(lines(system, "WARN no tracingAccessToken; OTLP trace export is unauthenticated")) == 1
    assert "lightstep-access-token" not in span.headers


# --- collectors that do not take spans


def closed_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_a_collector_that_is_not_there_is_told_once(protocol: str) -> None:
    quick = {"OTEL_EXPORTER_OTLP_TIMEOUT": "0.2", "OTEL_EXPORTER_OTLP_PROTOCOL": protocol}
    with router(closed_port(), **quick) as system:
        for _ in range(3):
            lost = counted(system, "export_failed")
            ask(system)
            wait_until(lambda: counted(system, "export_failed") > lost, 10, "another batch is lost")  # noqa: B023
        (line,) = lines(system, "traces cannot be exported; spans are lost")
        assert "WARN" in line
        assert "error=" in line
        assert "opentelemetry" not in system.router.log()
        assert stopped_within(system) < FLUSHED_WITHIN_S


def test_an_outage_ends_with_a_line_that_counts_what_was_lost(receiver: OtlpReceiver) -> None:
    receiver.behaviour = Behaviour.REFUSE
    with router(receiver.grpc_url) as system:
        ask(system)
        line = system.router.until_logged("traces cannot be exported")
        assert "refused by the test" in line
        receiver.behaviour = Behaviour.TAKE
        ask(system)
        assert "lost_spans=1" in system.router.until_logged("traces are exported again")
        assert counted(system, "export_failed") == 1


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_a_collector_that_does_not_answer_is_not_felt(receiver: OtlpReceiver, protocol: str) -> None:
    receiver.behaviour = Behaviour.HANG
    url = receiver.grpc_url if protocol == "grpc" else receiver.http_url
    bounds = {
        "OTEL_BSP_MAX_QUEUE_SIZE": "10",
        "OTEL_EXPORTER_OTLP_TIMEOUT": "60",
        "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
    }
    with router(url, **bounds) as system:
        ask(system)
        wait_until(lambda: receiver.batches, 10, "the first batch hangs")
        ask(system, 30)
        assert counted(system, "queue_full") == 20
        took_s = stopped_within(system)
        assert took_s < FLUSHED_WITHIN_S
        assert "spans=11" in lines(system, "traces were not exported before the end")[0]
        assert lines(system, "stargate stopped cleanly")


@pytest.mark.loop("grpc")
async def test_a_drain_that_runs_out_of_time_does_not_wait_for_the_collector(receiver: OtlpReceiver) -> None:
    receiver.behaviour = Behaviour.HANG
    with router(receiver.grpc_url, "--shutdown-drain-timeout-ms=1000") as system:
        case = CaseOverTunnels(system)
        worker = await case.worker()
        ask(system)
        wait_until(lambda: receiver.batches, 10, "the first batch hangs")
        await case.send(case.post())
        await worker.next_request()
        began = time.monotonic()
        system.router.send(signal.SIGTERM)
        assert await asyncio.to_thread(system.router.wait) == 1
        assert time.monotonic() - began < FLUSHED_WITHIN_S
        await case.close()


# --- what is not usable never stops the start


def test_variables_that_cannot_be_parsed_are_one_warning_each(receiver: OtlpReceiver) -> None:
    garbage = {
        "OTEL_BSP_MAX_QUEUE_SIZE": "many",
        "OTEL_BSP_SCHEDULE_DELAY": "-1",
        "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT": "x",
        "OTEL_EXPORTER_OTLP_TIMEOUT": "soon",
        "OTEL_EXPORTER_OTLP_COMPRESSION": "zip",
        "OTEL_EXPORTER_OTLP_HEADERS": "very-secret",
        "OTEL_EXPORTER_OTLP_PROTOCOL": "carrier-pigeon",
        "OTEL_EXPORTER_OTLP_CERTIFICATE": "/no/such/file",
        "OTEL_TRACES_SAMPLER": "sometimes",
        "OTEL_TRACES_EXPORTER": "zipkin",
        "OTEL_SDK_DISABLED": "perhaps",
        "OTEL_RESOURCE_ATTRIBUTES": "no-pair",
    }
    others = {
        "OTEL_PROPAGATORS": "nobody",
        "OTEL_PYTHON_CONTEXT": "nobody",
        "OTEL_EXPERIMENTAL_RESOURCE_DETECTORS": "x",
    }
    with router(receiver.grpc_url, **garbage, **others) as system:
        ask(system)
        stopped_within(system)
        for name in garbage:
            assert len(lines(system, f'variable="{name}"')) == 1
        assert "very-secret" not in system.router.log()
        assert "Traceback" not in system.router.log()
    assert len(receiver.named(REQUEST)) == 1


@pytest.mark.parametrize(
    ("endpoint", "variables", "said"),
    [
        ("carrier pigeon", {}, "WARN traces are not exported: no usable endpoint"),
        (
            "http://127.0.0.1:1",
            {"OTEL_SDK_DISABLED": "true"},
            "INFO traces are not exported: the environment disables it",
        ),
        (
            "http://127.0.0.1:1",
            {"OTEL_PYTHON_EXPORTER_OTLP_GRPC_TRACES_CREDENTIAL_PROVIDER": "nobody"},
            "INFO traces are exported",
        ),
        ("http://127.0.0.1:1", {"PYTHONPATH": "{broken}"}, "WARN traces are not exported: the OpenTelemetry SDK"),
    ],
)
def test_a_start_that_cannot_export_is_a_start(
    tmp_path: Path, endpoint: str, variables: Mapping[str, str], said: str
) -> None:
    (tmp_path / "sitecustomize.py").write_text("import grpc\ndel grpc.insecure_channel\n")
    with router(endpoint, **{name: text.format(broken=tmp_path) for name, text in variables.items()}) as system:
        ask(system)
        assert lines(system, said)


@pytest.fixture
def without_the_sdk(tmp_path: Path) -> str:
    """A directory for PYTHONPATH with which the SDK cannot be imported."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "class Missing:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] == 'opentelemetry':\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Missing())\n"
    )
    return str(tmp_path)


def test_without_the_extra_an_endpoint_is_one_warning(without_the_sdk: str) -> None:
    with router("http://127.0.0.1:1", PYTHONPATH=without_the_sdk) as system:
        ask(system)
        (line,) = lines(system, "the OpenTelemetry SDK, the extra [otel], is not installed")
        assert "WARN traces are not exported" in line
        assert not any(name.startswith("stargate_trace_spans_total") for name in system.metrics())


def test_without_an_endpoint_nothing_of_the_sdk_is_imported() -> None:
    with router(None, PYTHONPROFILEIMPORTTIME="1", OTEL_TRACES_SAMPLER="garbage") as system:
        ask(system)
        log = system.router.log()
        assert "router.process.tracing" in log
        assert "router.telemetry.otlp" not in log
        assert "opentelemetry" not in log
        assert "requests" not in {line.rpartition("|")[2].strip() for line in log.splitlines()}
        assert lines(system, "WARN value for the export of traces") == []


@pytest.mark.loop("grpc")
async def test_without_an_endpoint_the_headers_of_a_trace_pass_as_they_came() -> None:
    with router(None) as system:
        case = CaseOverTunnels(system)
        worker = await case.worker()
        await case.send(case.post(traceparent="00-anything", tracestate="a=b"))
        at_worker = await worker.next_request()
        at_worker.answer()
        assert (at_worker.header("traceparent"), at_worker.header("tracestate")) == ("00-anything", "a=b")
        await case.close()
