"""The gRPC service that gateways call: `ListModels` returns the models that are routable now.

Source: docs/control-plane.md, "Listing models".
"""

from collections.abc import Collection, Mapping

import structlog
from google.protobuf.message import DecodeError

from router.grpc.call import Call
from router.grpc.server import Handler
from router.grpc.status import CallError, Status
from router.registry.registry import Registry
from tunnel_protocol.control.stargate_pb2 import ListModelsRequest, ListModelsResponse

_log = structlog.get_logger()

MODEL_DISCOVERY = "stargate.StargateModelDiscovery"


class BlankModelError(Exception):
    """The filter has a model that is blank after trimming."""


def list_models(registry: Registry, routing_key: str | None, model_ids: Collection[str]) -> list[str]:
    """Routable models of one routing key, ascending; key and filter are trimmed, a blank key counts as None.

    Raises `BlankModelError`.
    """
    wanted = {model.strip() for model in model_ids}
    if "" in wanted:
        raise BlankModelError
    return registry.active_models((routing_key or "").strip() or None, wanted)


class ModelDiscovery:
    """The service."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def methods(self) -> Mapping[str, Handler]:
        """Its methods by name."""
        return {"ListModels": self._list_models}

    async def _list_models(self, call: Call) -> None:
        """List the routable models of this process."""
        try:
            request = ListModelsRequest.FromString(await call.read())
        except DecodeError:
            raise CallError(Status.INTERNAL, "the request cannot be decoded") from None
        routing_key = request.routing_key if request.HasField("routing_key") else None
        try:
            models = list_models(self._registry, routing_key, request.model_ids)
        except BlankModelError:
            raise CallError(Status.INVALID_ARGUMENT, "model_ids must not contain empty values") from None
        _log.debug("list_models completed", routing_key=routing_key, models=len(models))
        await call.write(ListModelsResponse(model_ids=models).SerializeToString())
