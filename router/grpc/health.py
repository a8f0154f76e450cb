"""`grpc.health.v1`, whose watches end when the listener drains."""

import asyncio
from typing import Any, Final

from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2

from router.grpc.call import Call
from router.grpc.status import CallError, Status

NAME: Final = "grpc.health.v1.Health"
_STATUS: Final = health_pb2.HealthCheckResponse


class Health:
    """The statuses of the services of one listener."""

    def __init__(self) -> None:
        self._services = {""}
        self._stopped = asyncio.Event()

    def serve(self, name: str) -> None:
        """Report service `name` as SERVING."""
        self._services.add(name)

    def stop(self) -> None:
        """Report every service as NOT_SERVING, and end all watches."""
        self._stopped.set()

    async def check(self, call: Call) -> None:
        """The status of one service; "" stands for the listener as a whole."""
        service = await _service(call)
        if service not in self._services:
            raise CallError(Status.NOT_FOUND, "unknown service")
        await call.write(self._state(service))

    async def watch(self, call: Call) -> None:
        """Stream the status of one service: now, and when the listener drains."""
        service = await _service(call)
        await call.write(self._state(service))
        await self._stopped.wait()
        await call.write(self._state(service))

    def _state(self, service: str) -> bytes:
        if service not in self._services:
            status: Any = _STATUS.SERVICE_UNKNOWN
        else:
            status = _STATUS.NOT_SERVING if self._stopped.is_set() else _STATUS.SERVING
        encoded: bytes = _STATUS(status=status).SerializeToString()
        return encoded


async def _service(call: Call) -> str:
    try:
        return str(health_pb2.HealthCheckRequest.FromString(await call.read()).service)
    except DecodeError:
        raise CallError(Status.INTERNAL, "the request cannot be decoded") from None
