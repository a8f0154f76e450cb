"""An OTLP collector for tests: takes spans over gRPC and over HTTP on two ports, and can refuse or hang."""

import gzip
import threading
from concurrent import futures
from enum import Enum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, NamedTuple, Self

import grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from support.waiting import wait_until

_METHOD = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"


class Behaviour(Enum):
    """What the collector does with a batch."""

    TAKE = "take"
    REFUSE = "refuse"
    HANG = "hang"
    """No answer until the receiver is closed."""


class ReceivedSpan(NamedTuple):
    """One span; ids are in hexadecimal, an absent parent is empty."""

    name: str
    trace_id: str
    span_id: str
    parent_id: str
    kind: str
    attributes: dict[str, Any]
    events: list[tuple[str, dict[str, Any]]]
    error: str | None
    """The description of the status if that is an error."""
    trace_state: str
    duration_ms: float
    resource: dict[str, Any]
    scope: str
    headers: dict[str, str]
    """Metadata or HTTP headers of the batch that held the span, names in lower case."""


class OtlpReceiver:
    """A collector on free loopback ports; close it, or use it as a context manager."""

    def __init__(self, credentials: grpc.ServerCredentials | None = None) -> None:
        self.behaviour = Behaviour.TAKE
        self.spans: list[ReceivedSpan] = []
        self.batches = 0
        """Batches that arrived, taken or not."""
        self._closed = threading.Event()
        self._grpc = grpc.server(futures.ThreadPoolExecutor(8))
        export = grpc.unary_unary_rpc_method_handler(
            self._export,
            request_deserializer=ExportTraceServiceRequest.FromString,
            response_serializer=ExportTraceServiceResponse.SerializeToString,
        )
        service, _, method = _METHOD[1:].partition("/")
        self._grpc.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: export}),))
        if credentials is None:
            self.grpc_port = self._grpc.add_insecure_port("127.0.0.1:0")
        else:
            self.grpc_port = self._grpc.add_secure_port("127.0.0.1:0", credentials)
        self._grpc.start()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _handler_of(self))
        self._http.daemon_threads = True
        self.http_port: int = self._http.server_address[1]
        self._serving = threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True)
        self._serving.start()

    @property
    def grpc_url(self) -> str:
        """Base URL of the gRPC port."""
        return f"http://127.0.0.1:{self.grpc_port}"

    @property
    def http_url(self) -> str:
        """Base URL of the HTTP port."""
        return f"http://127.0.0.1:{self.http_port}"

    def named(self, name: str) -> list[ReceivedSpan]:
        """The spans of this name so far."""
        return [span for span in self.spans if span.name == name]

    def wait_for(self, name: str, count: int = 1, within_s: float = 20) -> list[ReceivedSpan]:
        """Wait until there are `count` spans of this name; returns them."""
        wait_until(lambda: len(self.named(name)) >= count, within_s, f"{count} spans {name}")
        return self.named(name)

    def receive(self, request: ExportTraceServiceRequest, headers: dict[str, str]) -> bool:
        """Take a batch as `behaviour` says; False if it is refused."""
        self.batches += 1
        if self.behaviour is Behaviour.HANG:
            self._closed.wait()
        if self.behaviour is not Behaviour.TAKE:
            return False
        self.spans += [
            _received(span, _plain(of_resource.resource.attributes), of_scope.scope.name, headers)
            for of_resource in request.resource_spans
            for of_scope in of_resource.scope_spans
            for span in of_scope.spans
        ]
        return True

    def _export(self, request: ExportTraceServiceRequest, context: grpc.ServicerContext) -> ExportTraceServiceResponse:
        headers = {str(name): str(value) for name, value in context.invocation_metadata()}
        if not self.receive(request, headers):
            context.abort(grpc.StatusCode.PERMISSION_DENIED, "refused by the test")
        return ExportTraceServiceResponse()

    def close(self) -> None:
        """Close both ports; calls that hang end."""
        self._closed.set()
        self._grpc.stop(0).wait(5)
        self._http.shutdown()
        self._http.server_close()
        self._serving.join(5)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _handler_of(receiver: OtlpReceiver) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            data = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                data = gzip.decompress(data)
            headers = {name.lower(): value for name, value in self.headers.items()}
            taken = self.path == "/v1/traces" and receiver.receive(ExportTraceServiceRequest.FromString(data), headers)
            answer = ExportTraceServiceResponse().SerializeToString()
            self.send_response(200 if taken else 403)
            self.send_header("content-type", "application/x-protobuf")
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002 - the name in the base class
            """Writes nothing."""

    return Handler


def _received(span: Span, resource: dict[str, Any], scope: str, headers: dict[str, str]) -> ReceivedSpan:
    return ReceivedSpan(
        name=span.name,
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        kind=Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"),
        attributes=_plain(span.attributes),
        events=[(event.name, _plain(event.attributes)) for event in span.events],
        error=span.status.message if span.status.code == Status.STATUS_CODE_ERROR else None,
        trace_state=span.trace_state,
        duration_ms=(span.end_time_unix_nano - span.start_time_unix_nano) / 1e6,
        resource=resource,
        scope=scope,
        headers=headers,
    )


def _plain(attributes: Any) -> dict[str, Any]:
    return {one.key: _value(one.value) for one in attributes}


def _value(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    return None if kind is None else getattr(value, kind)
