"""The routers that workers can be sent to, found by host name. Sans-I/O.

`slices.py` reads them from EndpointSlices and stores them here; the gRPC listener and the QUIC relay look them up.
Source: docs/kubernetes-router.md, "Routers and their names".
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum, auto

from tunnel_protocol.quic.pod_tag import pod_tag

_POD_NAME = "{pod_name}"


class NoTarget(Enum):
    """Why a host name leads to no router."""

    UNKNOWN_NAME = auto()
    """The name does not match the template of host names."""
    NOT_READY = auto()
    """The name matches, but its pod is not in the list of targets, or there is no list yet."""


@dataclass(frozen=True, slots=True)
class Target:
    """One router pod: its name, its IP address (without brackets), and its ports."""

    pod_name: str
    ip: str
    grpc_port: int
    quic_port: int

    @property
    def grpc_address(self) -> str:
        """`ip:port` of the control plane, an IPv6 address in brackets."""
        return f"[{self.ip}]:{self.grpc_port}" if ":" in self.ip else f"{self.ip}:{self.grpc_port}"


class HostnameTemplate:
    """Host names of pods: `{namespace}` and `{pod_name}` are filled in, and the pod name is read back from a host name."""

    def __init__(self, template: str, namespace: str) -> None:
        self._template = template.replace("{namespace}", namespace)
        self._prefix, self._placeholder, self._suffix = self._template.partition(_POD_NAME)

    def host(self, pod_name: str) -> str:
        """The host name of a pod."""
        return self._template.replace(_POD_NAME, pod_name)

    def pod(self, host: str) -> str | None:
        """The pod name in a host name; None if it does not match. Compares with case; a template without a pod name never matches."""
        if not self._placeholder or not host.startswith(self._prefix) or not host.endswith(self._suffix):
            return None
        return host[len(self._prefix) : len(host) - len(self._suffix)] or None


class TargetList:
    """The complete list of targets that was published last; before the first one there is none."""

    def __init__(self, template: HostnameTemplate) -> None:
        self._template = template
        self._targets: dict[str, Target] | None = None
        self._by_tag: dict[bytes, list[Target]] = {}
        self._on_changed: list[Callable[[], None]] = []

    @property
    def complete(self) -> bool:
        """Whether a list was published."""
        return self._targets is not None

    @property
    def ready(self) -> bool:
        """Whether the list has a target."""
        return bool(self._targets)

    def publish(self, targets: Iterable[Target]) -> bool:
        """Replace the list; True, and callbacks are called, if it differs from the last one or is the first."""
        found = {target.pod_name: target for target in sorted(targets, key=lambda one: one.pod_name)}
        if found == self._targets:
            return False
        self._targets = found
        self._by_tag = {}
        for target in found.values():
            self._by_tag.setdefault(pod_tag(target.pod_name), []).append(target)
        for call in self._on_changed:
            call()
        return True

    def on_changed(self, call: Callable[[], None]) -> None:
        """Call `call` after every change of the list."""
        self._on_changed.append(call)

    def sorted_by_pod_name(self) -> tuple[Target, ...]:
        """All targets."""
        return tuple((self._targets or {}).values())

    def host(self, target: Target) -> str:
        """The host name under which workers reach `target`."""
        return self._template.host(target.pod_name)

    def pod(self, host: str) -> str | None:
        """The pod name in a host name without port; None if it does not match."""
        return self._template.pod(host)

    def target(self, pod_name: str) -> Target | None:
        """The target of a pod; None if it is not in the list."""
        return (self._targets or {}).get(pod_name)

    def quic_target(self, server_name: str) -> tuple[str, int] | NoTarget:
        """IP address and UDP port of the router that a server name (TLS SNI) stands for."""
        pod_name = self.pod(server_name)
        if pod_name is None:
            return NoTarget.UNKNOWN_NAME
        target = self.target(pod_name)
        return NoTarget.NOT_READY if target is None else (target.ip, target.quic_port)

    def quic_targets_of_tag(self, tag: bytes) -> list[tuple[str, int]]:
        """IP addresses and UDP ports of the routers whose connection ids begin with `tag`: none, one, by chance several."""
        return [(target.ip, target.quic_port) for target in self._by_tag.get(tag, ())]
