"""Discovery of the routers of this installation, in rounds; a failing round uses the last good answer.

Source: docs/control-plane.md, "Discovery".
"""

import asyncio
import ipaddress
import time
from collections import Counter
from collections.abc import Callable, Iterable
from ipaddress import IPv4Address, IPv6Address
from typing import Protocol

import structlog

from router.control_plane.replicas import (
    LookupFailedError,
    Pod,
    Replica,
    SrvRecord,
    dashed_address,
    from_addresses,
    from_pods,
    needs_addresses,
    one_name_per_pod,
    pod_of,
    pod_replica,
    split_port,
    with_siblings,
    without_scope,
)
from router.telemetry.metrics import Metrics

_log = structlog.get_logger()


class Names(Protocol):
    """DNS; see `resolver.Resolver`."""

    async def srv(self, name: str) -> list[SrvRecord]:
        """The SRV records of `name`, with the addresses that came with them. Raises `LookupFailedError`."""

    async def addresses(self, name: str) -> list[str]:
        """The IPv4 and IPv6 addresses of `name`. Raises `LookupFailedError` if it has neither."""


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
    """Discovery by the SRV records of a headless Kubernetes Service: one per pod.

    The Service can list a pod of a Deployment twice, by its name and by a name made of its address. With `one_name_per_pod` the
    second is not published: workers would register with the pod twice, and a front that knows pods by name would refuse it.
    """

    kind = "srv"
    failure_text = "headless service SRV lookup failed"

    def __init__(
        self,
        resolver: Names,
        *,
        dns_name: str,
        template: str,
        pod_name: str,
        namespace: str,
        advertise_addr: str,
        one_name_per_pod: bool,
    ) -> None:
        self.dns_name = dns_name
        host, self._own_port = split_port(advertise_addr)
        self._own_address = ipaddress.ip_address(without_scope(host).strip("[]"))
        self._one_name_per_pod = one_name_per_pod
        self._second_names: frozenset[str] = frozenset()
        self.own = pod_replica(template, pod_name, namespace, self._own_port)
        self._resolver = resolver
        self._template = template
        self._namespace = namespace
        self._foreign: frozenset[str] = frozenset()
        self._collapsed = False

    async def replicas(self) -> list[Replica]:
        """The pods of the Service. Raises `LookupFailedError`."""
        pods: list[Pod] = []
        foreign = set()
        for record in await self._resolver.srv(f"_grpc._tcp.{self.dns_name}"):
            pod_name = pod_of(record.target, self.dns_name)
            if pod_name is None:
                foreign.add(record.target)
            else:
                pods.append(Pod(pod_name, record.port, _parsed(record.addresses)))
        self._log_foreign(frozenset(foreign))
        if self._one_name_per_pod:
            pods = await self._without_second_names(pods)
        replicas = from_pods(
            [pod_replica(self._template, pod.name, self._namespace, pod.port) for pod in pods], self.own
        )
        self._log_collapsed(replicas)
        return replicas

    async def _without_second_names(self, pods: list[Pod]) -> list[Pod]:
        own_name = self.own.stargate_id
        if needs_addresses(pods, own_name, self._own_address):
            pods = list(await asyncio.gather(*(self._with_addresses(pod) for pod in pods)))
        kept = one_name_per_pod(pods, own_name, self._own_address, self._own_port)
        second = frozenset(pod.name for pod in pods) - {pod.name for pod in kept}
        if second - self._second_names:
            _log.info(
                "the headless service lists pods under a second name, which is not published",
                dns_name=self.dns_name,
                names=", ".join(sorted(second)),
            )
        self._second_names = second
        return kept

    async def _with_addresses(self, pod: Pod) -> Pod:
        """`pod` with its addresses; without, if they cannot be looked up: it is published then."""
        if pod.addresses or dashed_address(pod.name) is not None:
            return pod
        try:
            found = await self._resolver.addresses(f"{pod.name}.{self.dns_name}")
        except LookupFailedError as error:
            _log.debug("address of a pod not found", pod=pod.name, dns_name=self.dns_name, error=str(error))
            return pod
        return pod._replace(addresses=_parsed(found))

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


def _parsed(addresses: Iterable[str]) -> frozenset[IPv4Address | IPv6Address]:
    return frozenset(ipaddress.ip_address(text) for text in addresses)


class PlainDns:
    """Discovery by A and AAAA records: one router per address, all on this router's port."""

    kind = "address"
    failure_text = "dns lookup failed"

    def __init__(self, resolver: Names, *, dns_name: str, own: Replica) -> None:
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
        self.siblings: tuple[Replica, ...] = ()
        """The other processes of this router's host (`--processes`), published with it in every round."""

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
        if self.siblings:
            replicas = with_siblings(replicas, self._lookup.own, self.siblings)
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
