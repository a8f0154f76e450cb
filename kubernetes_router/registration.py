"""`RegisterInferenceServer`, passed on to the router that the `:authority` of the call names, without decoding a message.

Source: docs/kubernetes-router.md, "Registrations".
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

import structlog

from kubernetes_router.call import Call
from kubernetes_router.grpc_messages import GrpcStatus, field, host_of
from kubernetes_router.http2.connection import Http2Connection, InvalidHeadersError
from kubernetes_router.http2.stream import Headers, Http2Stream
from kubernetes_router.metrics import Metrics
from kubernetes_router.targets import Target, TargetList

_log = structlog.get_logger()

_PROTOCOL_ERROR: Final = 0x1
_CANCEL: Final = 0x8

Connect = Callable[[Target], Awaitable[Http2Connection]]
"""Connects to the control plane of a router. Raises `OSError`."""


class RegistrationCall(Call):
    """The worker's side of one registration, and what connects it with the router's side."""

    def __init__(
        self, stream: Http2Stream, on_over: Callable[[Call], None], metrics: Metrics, *, connect_timeout_s: float
    ) -> None:
        super().__init__(stream, on_over)
        self._metrics = metrics
        self._connect_timeout_s = connect_timeout_s
        self._connecting: asyncio.Task[None] | None = None
        self._router: _RouterSide | None = None
        self._waiting = bytearray()
        self._complete = False
        self.pod_name: str | None = None
        """The router it is passed on to; None before it was found."""

    def start(self, headers: Headers, targets: TargetList, connect: Connect) -> None:
        """Find the router and connect to it, or refuse the call."""
        authority = (field(headers, b":authority") or field(headers, b"host") or b"").decode("latin-1")
        if not authority:
            self._refuse(
                "missing_authority", GrpcStatus.INVALID_ARGUMENT, "registration requires a target stargate authority"
            )
            return
        host = host_of(authority)
        pod_name = targets.pod(host)
        if pod_name is None:
            text = f"registration authority {host} does not match advertised stargate hostname template"
            self._refuse("unknown_authority", GrpcStatus.INVALID_ARGUMENT, text)
            return
        target = targets.target(pod_name)
        if target is None:
            text = f"target stargate {pod_name} is not ready"
            self._refuse("target_unavailable", GrpcStatus.UNAVAILABLE, text)
            return
        self.pod_name = pod_name
        self._connecting = asyncio.create_task(self._connect(target, headers, connect), name="connect to a router")

    async def _connect(self, target: Target, headers: Headers, connect: Connect) -> None:
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                connection = await connect(target)
            stream = connection.request(_towards(target, headers))
        except TimeoutError:
            self._refuse("connect_timeout", GrpcStatus.UNAVAILABLE, "timed out connecting to stargate target")
            return
        except OSError as error:
            text = f"failed to connect to stargate target: {error.strerror or error}"
            self._refuse("connect_failed", GrpcStatus.UNAVAILABLE, text)
            return
        except InvalidHeadersError:
            connection.go_away()
            self._metrics.registrations_total.inc(("malformed",))
            self.stream.reset(_PROTOCOL_ERROR)
            self.finish()
            return
        self._metrics.registrations_total.inc(("accepted",))
        _log.info("registration passed on", target_pod=target.pod_name, target_addr=target.grpc_address)
        self._router = _RouterSide(self, connection, stream, target.pod_name)
        if self._waiting:
            stream.send(bytes(self._waiting))
            self._waiting.clear()
        if self._complete:
            stream.send_end()

    def _refuse(self, outcome: str, status: GrpcStatus, message: str) -> None:
        self._metrics.registrations_total.inc((outcome,))
        _log.warning("registration refused", reason=outcome, error=message)
        self.end(status, message)

    def ended(self, outcome: str) -> None:
        """Count how a registration ended that was passed on."""
        self._metrics.registrations_total.inc((outcome,))

    def finish(self) -> None:
        """Leave the router too."""
        super().finish()
        if self._connecting is not None and self._connecting is not asyncio.current_task():
            self._connecting.cancel()
        if self._router is not None:
            self._router.leave()

    # --- StreamHandler: from the worker ----------------------------------------------------------------------------

    def on_data(self, data: bytes) -> None:
        """Bytes for the router."""
        if self._router is None:
            self._waiting += data  # bounded by the window of the stream
        else:
            self._router.stream.send(data)

    def on_end(self) -> None:
        """The worker has sent everything."""
        self._complete = True
        if self._router is not None:
            self._router.stream.send_end()

    def on_reset(self, _code: int | None) -> None:
        """The worker has ended the call, or is gone."""
        if self._router is not None:
            self.ended("worker_left")
        self.finish()

    def on_sent(self, size: int) -> None:
        """The router may send as much again."""
        if self._router is not None:
            self._router.stream.consumed(size)


class _RouterSide:
    """The router's side of a registration: a connection of its own."""

    def __init__(self, call: RegistrationCall, connection: Http2Connection, stream: Http2Stream, pod_name: str) -> None:
        self._call = call
        self._connection = connection
        self._pod_name = pod_name
        self.stream = stream
        stream.handler = self

    def leave(self) -> None:
        """End the call at the router, if it runs, and the connection."""
        self.stream.reset(_CANCEL)
        self._connection.go_away()

    def on_headers(self, headers: Headers, *, ended: bool) -> None:
        """The head or the trailers of the response."""
        worker = self._call.stream
        if not ended:
            worker.send_headers(headers)
            return
        self._call.ended("completed")
        if worker.head_sent:
            self._call.end_with_trailers(headers)
        else:
            worker.send_headers(headers, end=True)
            self._call.finish()

    def on_data(self, data: bytes) -> None:
        """Bytes for the worker."""
        self._call.stream.send(data)

    def on_end(self) -> None:
        """The router has ended the call; without trailers if it still runs."""
        if not self._call.over:
            self._call.ended("completed")
            self._call.end_with_trailers(None)

    def on_reset(self, code: int | None) -> None:
        """The router has reset the call, or is gone."""
        if self._call.over:
            return
        self._call.ended("target_lost")
        _log.warning("a router has left a registration", target_pod=self._pod_name, code=code)
        if code is None:
            self._call.end(GrpcStatus.UNAVAILABLE, "connection to stargate target lost")
        else:
            self._call.stream.reset(code)
            self._call.finish()

    def on_sent(self, size: int) -> None:
        """The worker may send as much again."""
        self._call.stream.consumed(size)


def _towards(target: Target, headers: Headers) -> Headers:
    """The head of the call at the router: all metadata, under the address of the pod."""
    path = field(headers, b":path") or b""
    return [
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":authority", target.grpc_address.encode()),
        (b":path", path),
        *((name, value) for name, value in headers if not name.startswith(b":") and name != b"host"),
    ]
