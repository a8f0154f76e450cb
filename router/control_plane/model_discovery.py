"""The gRPC service that gateways call: `ListModels` returns the models that are routable now.

Source: docs/control-plane.md, "Listing models".
"""

from collections.abc import Collection

import grpc
import structlog

from router.control_plane.registration_stream import Context
from router.registry.registry import Registry
from tunnel_protocol.control import stargate_pb2
from tunnel_protocol.control.stargate_pb2_grpc import StargateModelDiscoveryServicer

_log = structlog.get_logger()


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


class ModelDiscovery(StargateModelDiscoveryServicer):
    """The servicer."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    async def ListModels(  # noqa: N802 (name of the RPC)
        self, request: stargate_pb2.ListModelsRequest, context: Context
    ) -> stargate_pb2.ListModelsResponse:
        """List the routable models of this process."""
        routing_key = request.routing_key if request.HasField("routing_key") else None
        try:
            models = list_models(self._registry, routing_key, request.model_ids)
        except BlankModelError:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "model_ids must not contain empty values")
        _log.debug("list_models completed", routing_key=routing_key, models=len(models))
        return stargate_pb2.ListModelsResponse(model_ids=models)
