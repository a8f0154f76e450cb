"""The tunnels that are relayed, and how datagrams find theirs. Sans-I/O.

A flow is one QUIC connection of a worker. It has a path per address that the worker sends from: mostly one, and another one after
its port changed (NAT rebinding). Each path has a socket of its own towards the router, so the router sees that the address has
changed, and validates it (RFC 9000 section 9) as it would without a relay.

A datagram of a worker is found by its destination connection id. Ids that routers choose are learned from the long headers that
they send: they lead to their flow from any address. An id that a client chose counts only together with its address, as does one that a router
chose in a handshake which another replica has seen.
"""

from collections import OrderedDict
from collections.abc import Iterator
from typing import Final

from kubernetes_router.relay.initial_packets import LongHeader
from kubernetes_router.relay.outcomes import Outcome
from tunnel_protocol.limit import Limit
from tunnel_protocol.quic.engine import CID_BYTES, Address
from tunnel_protocol.quic.sources import SourceQueue, source_of

FLOWS = Limit("kubernetes_router.relay_flows", pieces=4_096)
"""Tunnels that are relayed."""
UNCONFIRMED = Limit("kubernetes_router.relay_flows_unconfirmed", pieces=512)
"""Of these the ones whose client has not shown that it receives what is sent to its address."""
IDS = Limit("kubernetes_router.relay_connection_ids", pieces=4)
"""Connection ids learned of one flow: that of a Retry, and the router's own."""
PATHS = Limit("kubernetes_router.relay_paths", pieces=3)
"""Addresses of a client that one flow is relayed for at a time."""
MOVED = Limit("kubernetes_router.relay_paths_of_moved_clients", pieces=1_024)
"""Paths beyond the first one of each flow, of all flows."""

EVICTABLE_S: Final = 60.0
"""Seconds without a datagram of the client after which a flow may make way for a new one. The idle time-out of QUIC connections
of routers and workers is 30 s, so their ends have probably given it up."""

Target = tuple[str, int]
"""IP address and UDP port of a router."""


class Path:
    """One address of a client, and the socket towards the router that belongs to it."""

    __slots__ = ("answered_at", "client", "flow", "last_at")

    def __init__(self, flow: "Flow", client: Address, now: float) -> None:
        self.flow = flow
        self.client = client
        self.answered_at = 0.0
        """When the router last sent a datagram to this address; 0 if never."""
        self.last_at = now
        """When the client last sent one from it."""


class Flow:
    """One QUIC connection that is relayed."""

    __slots__ = ("client_at", "confirmed", "ids", "keys", "paths", "started_at", "target")

    def __init__(self, target: Target, now: float) -> None:
        self.target = target
        self.started_at = now
        self.client_at = now
        """When the client last sent a datagram."""
        self.confirmed = False
        """Whether the client has used a connection id that the router chose, so it receives what is sent to its address."""
        self.ids: list[bytes] = []
        """Connection ids that the router chose."""
        self.keys: list[tuple[Address, bytes]] = []
        """Addresses with connection ids that count only there."""
        self.paths: dict[Address, Path] = {}

    @property
    def answered(self) -> bool:
        """Whether the router has sent a datagram."""
        return any(path.answered_at for path in self.paths.values())


class FlowTable:
    """All flows, by connection id and address, within bounds."""

    def __init__(self, *, max_flows: int, max_unconfirmed: int) -> None:
        self._max_flows = max_flows
        self._max_unconfirmed = max_unconfirmed
        self._by_id: dict[bytes, Flow] = {}
        self._by_client: dict[tuple[Address, bytes], Flow] = {}
        self._at_address: dict[Address, dict[Flow, None]] = {}
        self._confirmed: OrderedDict[Flow, None] = OrderedDict()
        """The flow that was silent for longest first."""
        self._unconfirmed: SourceQueue[Flow] = SourceQueue()
        self._sizes: dict[int, int] = {}
        """Number of learned connection ids of each length, longest first."""
        self.moved = 0
        """Number of paths beyond the first one of their flow."""

    def __len__(self) -> int:
        """Number of flows."""
        return len(self._confirmed) + len(self._unconfirmed)

    @property
    def unconfirmed(self) -> int:
        """Number of flows whose client has not shown that it receives."""
        return len(self._unconfirmed)

    def find(self, data: bytes, client: Address) -> Flow | None:
        """The flow that a datagram of a client belongs to, by its connection id; `data` is not empty."""
        if data[0] & 0x80:
            connection_id = data[6 : 6 + data[5]] if len(data) > 5 else b""
            return self._by_id.get(connection_id) or self._by_client.get((client, connection_id))
        for size in self._sizes:
            flow = self._by_id.get(data[1 : 1 + size])
            if flow is not None:
                return flow
        by_client = self._by_client
        return by_client.get((client, data[1 : 1 + CID_BYTES])) or by_client.get((client, b""))

    def at(self, client: Address) -> list[Flow]:
        """The flow to each router from this address, the most recently used of each; only confirmed ones."""
        found: dict[Target, Flow] = {}
        for flow in self._at_address.get(client, ()):
            other = found.get(flow.target)
            if flow.confirmed and (other is None or other.client_at <= flow.client_at):
                found[flow.target] = flow
        return list(found.values())

    def heard(self, flow: Flow, path: Path, data: bytes, now: float) -> None:
        """The client of `flow` has sent `data` on `path`."""
        path.last_at = flow.client_at = now
        if flow.confirmed:
            self._confirmed.move_to_end(flow)
        elif self._proves(flow, path, data):
            flow.confirmed = True
            self._unconfirmed.discard(flow)
            self._confirmed[flow] = None

    def _proves(self, flow: Flow, path: Path, data: bytes) -> bool:
        """Whether only somebody who received what the router sent can have sent `data`."""
        if not path.answered_at:
            return False
        if not data[0] & 0x80:
            return True
        connection_id = data[6 : 6 + data[5]]
        return connection_id in flow.ids or (not connection_id and (path.client, b"") in flow.keys)

    def answered(self, path: Path, data: bytes, now: float) -> None:
        """The router has sent `data` on `path`: learn the connection id that it chose."""
        path.answered_at = now
        if not data or not data[0] & 0x80:
            return
        header = LongHeader.parse(data)
        flow = path.flow
        if header is None or header.version == 0 or len(flow.ids) >= (IDS.pieces or 0):
            return
        chosen = header.source_cid
        if not chosen:
            self._name(flow, path.client, b"")
        elif chosen not in self._by_id:
            flow.ids.append(chosen)
            self._by_id[chosen] = flow
            self._count_size(len(chosen), 1)

    def place(self, now: float) -> Iterator[tuple[Flow, Outcome]]:
        """The flows to end before `add` may be called; see `full` afterwards."""
        if len(self._unconfirmed) >= self._max_unconfirmed:
            expendable = self._unconfirmed.most_expendable()
        elif len(self) >= self._max_flows:
            oldest = next(iter(self._confirmed), None)
            idle = oldest is not None and now - oldest.client_at >= EVICTABLE_S
            expendable = oldest if idle else self._unconfirmed.most_expendable()
        else:
            return
        if expendable is not None:
            yield expendable, Outcome.COMPLETED if expendable.confirmed else Outcome.RELAY_ERROR

    @property
    def full(self) -> bool:
        """Whether no flow can be added."""
        return len(self) >= self._max_flows or len(self._unconfirmed) >= self._max_unconfirmed

    def add(self, target: Target, client: Address, connection_id: bytes, now: float) -> Path:
        """A new flow of a client that has sent `connection_id` first."""
        flow = Flow(target, now)
        self._unconfirmed.add(flow, source_of(client[0]))
        self._name(flow, client, connection_id)
        return self._add_path(flow, client, now)

    def move(self, flow: Flow, client: Address, now: float) -> Path | None:
        """A path for another address of a client; None if there are too many. `spare` names one to remove before."""
        if len(flow.paths) >= (PATHS.pieces or 0) or self.moved >= (MOVED.pieces or 0):
            return None
        self.moved += 1
        return self._add_path(flow, client, now)

    def spare(self, flow: Flow) -> Path | None:
        """The path to remove for another address of the client: the one that the router answered least recently; None if none must.

        The router answers only what it could decrypt, so strangers that send with a connection id they saw displace each other.
        """
        if len(flow.paths) < (PATHS.pieces or 0):
            return None
        return min(flow.paths.values(), key=lambda path: path.answered_at)

    def remove_path(self, path: Path) -> None:
        """Forget a path which is not the only one of its flow."""
        self.moved -= 1
        self._forget_path(path)

    def remove(self, flow: Flow) -> list[Path]:
        """Forget a flow; returns the paths it had."""
        paths = list(flow.paths.values())
        self.moved -= len(paths) - 1
        for path in paths:
            self._forget_path(path)
        for connection_id in flow.ids:
            del self._by_id[connection_id]
            self._count_size(len(connection_id), -1)
        for key in flow.keys:
            if self._by_client.get(key) is flow:
                del self._by_client[key]
        if not self._unconfirmed.discard(flow):
            del self._confirmed[flow]
        return paths

    def expired(self, now: float, *, idle_s: float, handshake_s: float) -> list[tuple[Flow, Outcome]]:
        """The flows to end: silent for `idle_s` seconds, or not confirmed within `handshake_s`."""
        found: list[tuple[Flow, Outcome]] = []
        for flow in self._confirmed:
            if now - flow.client_at < idle_s:
                break
            found.append((flow, Outcome.COMPLETED))
        for flow in self._unconfirmed:
            if now - flow.started_at < handshake_s:
                break
            found.append((flow, Outcome.COMPLETED if flow.answered else Outcome.RELAY_ERROR))
        return found

    def left_paths(self, now: float) -> list[Path]:
        """Paths that their clients have left for another one."""
        if not self.moved:
            return []
        return [
            path
            for flow in self._confirmed
            if len(flow.paths) > 1
            for path in sorted(flow.paths.values(), key=lambda path: path.answered_at)[:-1]
            if now - path.last_at >= EVICTABLE_S
        ]

    def all(self) -> list[Flow]:
        """All flows."""
        return [*self._confirmed, *self._unconfirmed]

    def _name(self, flow: Flow, client: Address, connection_id: bytes) -> None:
        if self._by_client.get((client, connection_id)) is not flow:
            self._by_client[client, connection_id] = flow
            flow.keys.append((client, connection_id))

    def _add_path(self, flow: Flow, client: Address, now: float) -> Path:
        path = flow.paths[client] = Path(flow, client, now)
        self._at_address.setdefault(client, {})[flow] = None
        return path

    def _forget_path(self, path: Path) -> None:
        del path.flow.paths[path.client]
        flows = self._at_address[path.client]
        del flows[path.flow]
        if not flows:
            del self._at_address[path.client]

    def _count_size(self, size: int, change: int) -> None:
        left = self._sizes.pop(size, 0) + change
        if left:
            self._sizes[size] = left
            self._sizes = dict(sorted(self._sizes.items(), reverse=True))
