"""The routers of one installation: converts DNS answers into replicas, without I/O.

Source: docs/control-plane.md, "Discovery".
"""

import ipaddress
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple


class Replica(NamedTuple):
    """One router process, as published to workers."""

    stargate_id: str
    advertise_addr: str
    """`host:port` of its control plane."""
    http_advertise_addr: str = ""
    """`host:port` of its HTTP listener; empty = unknown or not published."""


class LookupFailedError(Exception):
    """The name could not be resolved; the text has the reason."""


class SrvRecord(NamedTuple):
    """The used fields of an SRV record."""

    target: str
    port: int
    addresses: tuple[str, ...] = ()
    """The addresses of the target, if the answer has them."""


class Pod(NamedTuple):
    """One name under which a headless Service lists a pod."""

    name: str
    port: int
    addresses: frozenset[IPv4Address | IPv6Address] = frozenset()
    """Its addresses, as far as they are known."""


def render_hostname(template: str, pod_name: str, namespace: str) -> str:
    """The host name of one router: `template` with `{pod_name}` and `{namespace}` replaced."""
    return template.replace("{pod_name}", pod_name).replace("{namespace}", namespace)


def split_port(address: str) -> tuple[str, int]:
    """Split `host:port`; an IPv6 host keeps its brackets. Raises ValueError."""
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdigit():
        raise ValueError(f"not host:port: {address}")
    return host, int(port)


def without_scope(host: str) -> str:
    """`host` without the scope id of a bracketed IPv6 address."""
    address, percent, _ = host.removesuffix("]").partition("%")
    return f"{address}]" if percent and host.startswith("[") else host


def own_replica(stargate_id: str, advertise_addr: str, http_port: int) -> Replica:
    """The replica of this router, with its HTTP address: the host of `advertise_addr` and the bound HTTP port."""
    host, _ = split_port(advertise_addr)
    return Replica(stargate_id, advertise_addr, f"{without_scope(host)}:{http_port}")


def pod_of(target: str, dns_name: str) -> str | None:
    """The pod name in an SRV target, which is exactly one label under the Service's name; None for any other target."""
    label, dot, domain = target.rstrip(".").partition(".")
    return label if label and dot and domain.lower() == dns_name.rstrip(".").lower() else None


def dashed_address(name: str) -> IPv4Address | IPv6Address | None:
    """The address that a name is made of, `10-1-2-3` or `fd00--1`; None for any other name.

    Cluster DNS calls a pod so that has no host name of its own, as the pods of a Deployment.
    """
    for made_of, separator in ((IPv4Address, "."), (IPv6Address, ":")):
        try:
            return made_of(name.replace("-", separator))
        except ValueError:
            continue
    return None


def needs_addresses(pods: Sequence[Pod], own_name: str, own_address: IPv4Address | IPv6Address) -> bool:
    """Whether `one_name_per_pod` needs the addresses of names that are not made of one."""
    dashed = [dashed_address(pod.name) for pod in pods]
    own_found = own_address in dashed or any(pod.name == own_name for pod in pods)
    return any(address not in (None, own_address) for address in dashed) or not own_found


def one_name_per_pod(
    pods: Iterable[Pod], own_name: str, own_address: IPv4Address | IPv6Address, own_port: int
) -> list[Pod]:
    """`pods` without second names: of names for one address and port, one that is made of the address is left out.

    So is every name of the own address and port but `own_name`.
    """
    by_name = {pod: dashed_address(pod.name) for pod in pods}
    own = {(own_address, own_port)}
    own.update((address, pod.port) for pod in by_name if pod.name == own_name for address in pod.addresses)
    named = {(address, pod.port) for pod, made_of in by_name.items() if made_of is None for address in pod.addresses}
    kept = []
    for pod, made_of in by_name.items():
        listed = {(address, pod.port) for address in (pod.addresses if made_of is None else [made_of])}
        second = bool(listed & own) or (made_of is not None and bool(listed & named))
        if pod.name == own_name or not second:
            kept.append(pod)
    return kept


def pod_replica(template: str, pod_name: str, namespace: str, port: int) -> Replica:
    """The replica of one pod of a headless Service; its HTTP address is not published."""
    return Replica(pod_name, f"{render_hostname(template, pod_name, namespace)}:{port}")


def with_siblings(replicas: Iterable[Replica], own: Replica, siblings: Sequence[Replica]) -> list[Replica]:
    """`replicas`, sorted, with the other processes of this router's host, and as many for each host found by its address.

    They are on the ports of the processes here: all hosts of an installation run the same number of processes.
    """
    found = {*replicas, *siblings}
    ports = [split_port(sibling.advertise_addr)[1] for sibling in siblings]
    for replica in replicas:
        if replica != own and replica.stargate_id == replica.advertise_addr:
            host, _ = split_port(replica.advertise_addr)
            found.update(Replica(f"{host}:{port}", f"{host}:{port}") for port in ports)
    return sorted(found)


def from_pods(pods: Iterable[Replica], own: Replica) -> list[Replica]:
    """The replicas of `pods`, sorted, with this router added if no record has its pod."""
    found = set(pods)
    if all(replica.stargate_id != own.stargate_id for replica in found):
        found.add(own)
    return sorted(found)


def from_addresses(addresses: Iterable[str], own: Replica) -> list[Replica]:
    """One replica per address of an A or AAAA answer, all on this router's port; this router is always included."""
    own_host, port = split_port(own.advertise_addr)
    own_ip = own_host.strip("[]")
    found = {own}
    for text in addresses:
        address = ipaddress.ip_address(text)
        if text == own_ip or address == ipaddress.ip_address(own_ip):
            continue
        if address.is_loopback or address.is_unspecified:
            continue
        host = f"[{address}]" if address.version == 6 else str(address)
        found.add(Replica(f"{host}:{port}", f"{host}:{port}"))
    return sorted(found)
