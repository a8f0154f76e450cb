"""Keeps the list of targets equal to the EndpointSlices: list, watch, list anew when the version is gone, pauses after failures.

Errors keep the last list. Source: docs/kubernetes-router.md, "Following the pods".
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Final, Protocol

import structlog

from kubernetes_router.backoff import Backoff
from kubernetes_router.kubernetes_api import ApiError, GoneError
from kubernetes_router.metrics import Metrics
from kubernetes_router.slice_events import Change, SliceEvent
from kubernetes_router.slices import EndpointSlice, PortNames, SliceStore, TooManyError
from kubernetes_router.targets import TargetList

_log = structlog.get_logger()

HEALTHY_S: Final = 5.0
"""A watch that lasted this long worked: what ended it is not the next of a series of failures."""


class SliceSource(Protocol):
    """Lists and watches slices; see `KubernetesApi`."""

    async def list(self) -> tuple[list[EndpointSlice], str]:
        """All slices and the version of this list. Raises `ApiError`."""

    def watch(self, resource_version: str) -> AsyncGenerator[SliceEvent]:
        """The changes after a version. Raises `ApiError`."""


class SliceWatcher:
    """The loop; one per process."""

    def __init__(
        self,
        source: SliceSource,
        targets: TargetList,
        names: PortNames,
        metrics: Metrics,
        *,
        backoff: Backoff | None = None,
    ) -> None:
        self._source = source
        self._targets = targets
        self._names = names
        self._metrics = metrics
        self._backoff = backoff or Backoff()
        self._reported: str | None = None
        self._store = SliceStore(names)
        self._version = ""

    async def run(self) -> None:
        """Follow the slices until cancelled."""
        listed = False
        while True:
            began = asyncio.get_running_loop().time()
            failure: ApiError | None = None
            try:
                if not listed:
                    await self._list()
                    listed = True
                    began = asyncio.get_running_loop().time()
                await self._watch()
            except ApiError as error:
                listed = listed and not isinstance(error, GoneError)
                failure = error
            except TooManyError as error:
                listed = False
                failure = ApiError("too_many", str(error))
            if listed and asyncio.get_running_loop().time() - began >= HEALTHY_S:
                self._backoff.reset()
            await self._pause(failure, lasted_s=asyncio.get_running_loop().time() - began)

    async def _list(self) -> None:
        """Collect a complete list in a new store, which then replaces the old one."""
        slices, version = await self._source.list()
        store = SliceStore(self._names)
        for found in slices:
            store.apply(found)
        self._store, self._version = store, version
        self._publish()

    async def _watch(self) -> None:
        async with aclosing(self._source.watch(self._version)) as events:
            async for event in events:
                self._apply(event)

    def _apply(self, event: SliceEvent) -> None:
        if event.slice is not None:
            if event.change is Change.DELETED:
                self._store.delete(event.slice.metadata.name)
            else:
                self._store.apply(event.slice)
            self._publish()
        self._version = event.resource_version or self._version
        if self._reported is not None:
            self._reported = None
            _log.info("EndpointSlices are followed again")

    def _publish(self) -> None:
        if self._targets.publish(self._store.targets()):
            pods = [target.pod_name for target in self._targets.sorted_by_pod_name()]
            _log.info("routers changed", count=len(pods), pods=", ".join(pods))

    async def _pause(self, failure: ApiError | None, lasted_s: float) -> None:
        """Wait before the next request, unless the last one has worked for a while."""
        if failure is not None:
            self._metrics.kubernetes_failures_total.inc((failure.reason,))
            text = str(failure)
            if text != self._reported and not isinstance(failure, GoneError):
                self._reported = text
                _log.warning(
                    "cannot follow EndpointSlices; the last list stays",
                    reason=failure.reason,
                    **({"hint": failure.hint} if failure.hint else {}),
                    error=text,
                )
        if lasted_s < HEALTHY_S:
            await asyncio.sleep(self._backoff.next_s())
