"""EndpointSlices (`discovery.k8s.io/v1`) and the targets in them. Sans-I/O.

An endpoint is a target if it is not unready, in a slice with a named TCP port and a named UDP port. The condition `serving` is
ignored: workers register with a router before it is ready for requests. One that terminates and is ready, which only a Service has
that publishes unready addresses, stays a target until it is removed: its workers would leave it at once otherwise, while it still
drains. It takes no new registration by itself.
Source: docs/kubernetes-router.md, "Routers and their names".
"""

from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address

import msgspec

from kubernetes_router.targets import Target
from tunnel_protocol.limit import Limit

SLICES = Limit("kubernetes_router.slices", pieces=1_000)
"""EndpointSlices of the Service; a cluster makes one per 100 endpoints."""

TARGETS = Limit("kubernetes_router.targets", pieces=10_000)
"""Endpoints with a pod name in all slices together."""

_MAX_SLICES = SLICES.pieces or 0
_MAX_TARGETS = TARGETS.pieces or 0


class TooManyError(Exception):
    """There are more slices or targets than `limit` allows; `limit` is its name."""

    def __init__(self, limit: Limit) -> None:
        super().__init__(f"more than {limit.pieces} ({limit.name})")
        self.limit = limit


class _Fields(msgspec.Struct, rename="camel"):
    """Base of the objects of the Kubernetes API: names in camel case; null and unknown fields are allowed."""


class Metadata(_Fields):
    """Name and version of an object."""

    name: str
    resource_version: str = ""


class Port(_Fields):
    """A port of a slice. The protocol is TCP if absent."""

    name: str | None = None
    port: int | None = None
    protocol: str | None = None


class Conditions(_Fields):
    """Conditions of an endpoint; absent ones are unknown, and count as good."""

    ready: bool | None = None
    terminating: bool | None = None


class Reference(_Fields):
    """The object an endpoint stands for."""

    kind: str | None = None
    name: str | None = None


class Endpoint(_Fields):
    """An endpoint of a slice."""

    addresses: list[str] | None = None
    conditions: Conditions | None = None
    target_ref: Reference | None = None


class EndpointSlice(_Fields):
    """One slice."""

    metadata: Metadata
    endpoints: list[Endpoint] | None = None
    ports: list[Port] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PortNames:
    """Names of the ports in the slices."""

    grpc: str
    quic: str


def targets_of(found: EndpointSlice, names: PortNames) -> Iterator[Target]:
    """The targets in one slice. A pod that it lists twice appears twice."""
    grpc_port = _port(found, names.grpc, "TCP")
    quic_port = _port(found, names.quic, "UDP")
    if grpc_port is None or quic_port is None:
        return
    for endpoint in found.endpoints or ():
        conditions = endpoint.conditions or Conditions()
        if conditions.ready is False or (conditions.terminating and conditions.ready is None):
            continue
        pod_name, ip = _pod_name(endpoint), _first_ip(endpoint)
        if pod_name is not None and ip is not None:
            yield Target(pod_name, ip, grpc_port, quic_port)


def _port(found: EndpointSlice, name: str, protocol: str) -> int | None:
    for one in found.ports or ():
        if one.name == name and (one.protocol or "TCP").upper() == protocol and 0 < (one.port or 0) <= 65535:
            return one.port
    return None


def _pod_name(endpoint: Endpoint) -> str | None:
    reference = endpoint.target_ref
    if reference is None or (reference.kind or "Pod") != "Pod":
        return None
    return reference.name or None


def _first_ip(endpoint: Endpoint) -> str | None:
    if not endpoint.addresses:
        return None
    try:
        return str(ip_address(endpoint.addresses[0]))
    except ValueError:
        return None  # addressType FQDN, which Kubernetes has deprecated


class SliceStore:
    """The slices of one list and of the changes after it.

    A pod may be in several slices: the slice that was observed last wins. A new list is collected in a new store, which then
    replaces the old one.
    """

    def __init__(self, names: PortNames) -> None:
        self._names = names
        self._slices: dict[str, tuple[Target, ...]] = {}
        """By slice name, in the order in which they were observed."""
        self._count = 0

    def apply(self, found: EndpointSlice) -> None:
        """A slice was listed, added or modified. Raises `TooManyError`; the store is unchanged then."""
        targets = tuple(targets_of(found, self._names))
        name = found.metadata.name
        before = self._slices.get(name, ())
        if name not in self._slices and len(self._slices) >= _MAX_SLICES:
            raise TooManyError(SLICES)
        if self._count - len(before) + len(targets) > _MAX_TARGETS:
            raise TooManyError(TARGETS)
        self.delete(name)
        self._slices[name] = targets
        self._count += len(targets)

    def delete(self, name: str) -> None:
        """A slice was deleted; an unknown one changes nothing."""
        self._count -= len(self._slices.pop(name, ()))

    def targets(self) -> list[Target]:
        """One target per pod."""
        found: dict[str, Target] = {}
        for targets in self._slices.values():
            for target in targets:
                found[target.pod_name] = target
        return list(found.values())
