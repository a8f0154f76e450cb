"""`GET /v1/models` and `GET /v1/models/{id}`: the models that the caller may use and that have a worker now."""

from typing import Final

import msgspec

from router.http1.request import ClientRequest
from router.http1.response import Response
from router.openai import errors
from router.openai.caller_request import JSON, CallerRequest
from router.openai.front_context import FrontContext
from router.openai.ports import Caller
from router.registry import TargetKey

OWNER: Final = "llm-request-router"
"""`owned_by` of models that are registered without a routing key."""


class ModelsRequest(CallerRequest):
    """One request for the list, or for one model of it."""

    def __init__(self, front: FrontContext, request: ClientRequest, response: Response, name: str | None) -> None:
        """`name` is that of one model; None for the list."""
        super().__init__(front, request, response)
        self._name = name

    def identified(self, caller: Caller) -> None:
        """See `CallerRequest.identified`."""
        front, name = self._front, self._name
        if name is None:
            data = [
                self._shown(one, key) for one, key in front.names.names() if caller.may_use(key.routing_key, key.model)
            ]
            self._answer({"object": "list", "data": data})
            return
        found = front.names.find(name)
        if found is None or front.registry.target(found) is None or not caller.may_use(found.routing_key, found.model):
            self.refuse(errors.model_not_found(name))
        else:
            self._answer(self._shown(name, found))

    def _shown(self, name: str, key: TargetKey) -> dict[str, object]:
        created = self._front.known.created(key)
        return {"id": name, "object": "model", "created": created, "owned_by": key.routing_key or OWNER}

    def _answer(self, document: dict[str, object]) -> None:
        self.finish(200, None)
        self._response.send(200, [*self._headers, JSON], msgspec.json.encode(document))
