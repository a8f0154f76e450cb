"""Discovery of the routers of this installation, in rounds; a failing round uses the last good answer.

Source: docs/control-plane.md, "Discovery".
"""

import time
from collections import Counter
from collections.abc import Callable
from typing import Protocol

import structlog

from router.control_plane.replicas import (
    Replica,
    from_addresses,
    from_pods,
    pod_of,
    pod_replica,
    split_port,
)
from router.control_plane.resolver import LookupFailedError, Resolver
from router.telemetry.metrics import Metrics

_log = structlog.get_logger()


class Lookup(Protocol):
    """One method of discovery."""

    own: Replica
    """This router, as this method lists it."""
    kind: str
    """The label of failures in metrics."""
    dns_name: str
    """The name that is looked up, for the log."""
    failure_text: str
    """The text of the log line of a failed round."""

    async def replicas(self) -> list[Replica]:
        """All routers, this one included, sorted. Raises `LookupFailedError`."""


class SelfOnly:
    """Discovery is off: lists only this router."""

    kind, dns_name, failure_text = "none", "", ""  # unused: it does not fail

    def __init__(self, own: Replica) -> None:
        self.own = own

    async def replicas(self) -> list[Replica]:
        """Only this router."""
        return [self.own]


class HeadlessService:
    """Discovery by the SRV records of a headless Kubernetes Service: one per pod."""

    kind = "srv"
    failure_text = "headless service SRV lookup failed"

    def __init__(
        self, resolver: Resolver, *, dns_name: str, template: str, pod_name: str, namespace: str, advertise_addr: str
    ) -> None:
        self.dns_name = dns_name
        self.own = pod_replica(template, pod_name, namespace, split_port(advertise_addr)[1])
        self._resolver = resolver
        self._template = template
        self._namespace = namespace
        self._foreign: frozenset[str] = frozenset()
        self._collapsed = False

    async def replicas(self) -> list[Replica]:
        """The pods of the Service. Raises `LookupFailedError`."""
        pods = []
        foreign = set()
        for record in await self._resolver.srv(f"_grpc._tcp.{self.dns_name}"):
            pod_name = pod_of(record.target, self.dns_name)
            if pod_name is None:
                foreign.add(record.target)
            else:
                pods.append(pod_replica(self._template, pod_name, self._namespace, record.port))
        self._log_foreign(frozenset(foreign))
        replicas = from_pods(pods, self.own)
        self._log_collapsed(replicas)
        return replicas

    def _log_foreign(self, foreign: frozenset[str]) -> None:
        for target in sorted(foreign - self._foreign):
            _log.warning(
                "ignoring SRV target outside headless service domain", dns_name=self.dns_name, srv_target=target
            )
        self._foreign = foreign

    def _log_collapsed(self, replicas: list[Replica]) -> None:
        addresses = Counter(replica.advertise_addr for replica in replicas)
        address, times = addresses.most_common(1)[0]
        if times > 1 and not self._collapsed:
            _log.warning(
                "several pods render to one address; workers will register with only one of them",
                advertise_addr=address,
                pods=times,
                template=self._template,
            )
        self._collapsed = times > 1


class PlainDns:
    """Discovery by A and AAAA records: one router per address, all on this router's port."""

    kind = "address"
    failure_text = "dns lookup failed"

    def __init__(self, resolver: Resolver, *, dns_name: str, own: Replica) -> None:
        self.dns_name = dns_name
        self.own = own
        self._resolver = resolver

    async def replicas(self) -> list[Replica]:
        """The addresses of the name. Raises `LookupFailedError`."""
        return from_addresses(await self._resolver.addresses(self.dns_name), self.own)


class Discovery:
    """Runs rounds of one lookup. A failing round repeats the last good answer for `grace_s`, then lists only this router."""

    def __init__(
        self, lookup: Lookup, metrics: Metrics, *, grace_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._lookup = lookup
        self._metrics = metrics
        self._grace_s = grace_s
        self._clock = clock
        self._last_good: list[Replica] = []
        self._last_good_at = float("-inf")
        self._failing = False
        self._alone = False

    async def round(self) -> list[Replica]:
        """The routers to publish now; does not raise, and is never empty."""
        try:
            replicas = await self._lookup.replicas()
        except LookupFailedError as error:
            self._metrics.discovery_failures_total.inc((self._lookup.kind,))
            replicas = self._without_answer(error)
        else:
            if self._failing:
                _log.info("discovery works again", dns_name=self._lookup.dns_name)
            self._failing = self._alone = False
            self._last_good, self._last_good_at = replicas, self._clock()
        self._metrics.discovery_routers.set(len(replicas))
        return replicas

    def _without_answer(self, error: LookupFailedError) -> list[Replica]:
        if not self._failing:
            self._failing = True
            _log.warning(self._lookup.failure_text, error=str(error), dns_name=self._lookup.dns_name)
        if self._clock() - self._last_good_at <= self._grace_s:
            return self._last_good
        if self._last_good and not self._alone:
            self._alone = True
            _log.warning(
                "no discovery answer for too long; publishing only this router", dns_name=self._lookup.dns_name
            )
        return [self._lookup.own]
