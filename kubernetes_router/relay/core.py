"""Decides about datagrams of workers and routers. Sans-I/O: what it returns is done by `quic_relay.py`.

Nothing is sent to a router before the ClientHello of the client is complete and names it, and nothing to a client but what the
router sends, or one short answer to a datagram of at least 1,200 bytes.
"""

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple, Protocol

from kubernetes_router.relay.first_flight import FirstFlight, Resolved
from kubernetes_router.relay.flows import FLOWS, UNCONFIRMED, Flow, FlowTable, Path, Target
from kubernetes_router.relay.initial_packets import FirstFlightError
from kubernetes_router.relay.outcomes import Dropped, Outcome
from kubernetes_router.targets import NoTarget
from tunnel_protocol.limit import Limit
from tunnel_protocol.quic.admission import CONNECTION_REFUSED, Budget
from tunnel_protocol.quic.engine import CID_BYTES, Address, destination_cid
from tunnel_protocol.quic.pod_tag import tag_in
from tunnel_protocol.quic.sources import Source, SourceQueue, source_of

FLIGHTS = Limit("kubernetes_router.first_flights", pieces=512)
"""Clients whose ClientHello is not complete."""
FLIGHTS_OF_ADDRESS = Limit("kubernetes_router.first_flights_of_address", pieces=128)
"""Of these, clients at one IPv4 address or in one IPv6 /64."""
FLIGHTS_PER_SECOND = Limit("kubernetes_router.first_flights_per_second", pieces=1_000)
"""Clients whose first datagram is read, in a second."""
MOVES_PER_SECOND = Limit("kubernetes_router.relay_moves_per_second", pieces=1_000)
"""Tunnels that go on from another address, or here instead of at another replica, in a second."""
ANSWERS_PER_SECOND = Limit("kubernetes_router.relay_answers_per_second", pieces=200)
"""Answers of the relay itself in a second: CONNECTION_CLOSE and Version Negotiation."""

FLIGHT_S: Final = 5.0
"""Seconds that a ClientHello may take."""
HANDSHAKE_S: Final = 10.0
"""Seconds until a client must have used a connection id of the router."""

MISSING_SNI: Final = "missing target SNI"
UNKNOWN_SNI: Final = "unknown target SNI"
NOT_READY: Final = "target stargate not ready"
SHUTTING_DOWN: Final = "router shutdown before relay connected"


class Open(NamedTuple):
    """Make a socket towards the router for a new path."""

    path: Path


class Forward(NamedTuple):
    """Send datagrams to the router."""

    path: Path
    datagrams: Sequence[bytes]


class Answer(NamedTuple):
    """Send a datagram to a client."""

    data: bytes
    client: Address


class Close(NamedTuple):
    """Close the socket of a path."""

    path: Path


Action = Open | Forward | Answer | Close


class Refusals(Protocol):
    """Makes answers to first datagrams: `tunnel_protocol.quic.engine.EngineFactory`."""

    def starts_connection(self, data: bytes) -> bool:
        """Whether this datagram has the header of a client's first datagram."""

    def answer_version(self, data: bytes) -> bytes | None:
        """A Version Negotiation packet, if that is the answer."""

    def refuse(self, data: bytes, error_code: int, reason: str) -> bytes | None:
        """A CONNECTION_CLOSE packet."""


class RelayEvents(Protocol):
    """Is told what becomes of tunnels."""

    def outcome(self, outcome: Outcome, client: Address, detail: str) -> None:
        """A tunnel was refused, accepted or has ended; `detail` is the server name, or why there is none."""

    def dropped(self, reason: Dropped) -> None:
        """A datagram was not passed on."""


class _Waiting(NamedTuple):
    """A client whose ClientHello is not complete."""

    flight: FirstFlight
    since: float


class RelayCore:
    """The state of a relay."""

    def __init__(
        self,
        resolve: Callable[[str], Target | NoTarget],
        tagged: Callable[[bytes], Sequence[Target]],
        refusals: Refusals,
        events: RelayEvents,
        *,
        idle_s: float,
        max_flows: int = FLOWS.pieces or 0,
        max_unconfirmed: int = UNCONFIRMED.pieces or 0,
    ) -> None:
        """`resolve` finds the router of a server name, `tagged` those whose connection ids begin with a tag (`pod_tag`).

        A tunnel ends after `idle_s` seconds without a datagram of its client.
        """
        self._resolve = resolve
        self._tagged = tagged
        self._refusals = refusals
        self._events = events
        self._idle_s = idle_s
        self.flows = FlowTable(max_flows=max_flows, max_unconfirmed=max_unconfirmed)
        self._waiting: dict[tuple[Address, bytes], _Waiting] = {}
        self._sources: SourceQueue[tuple[Address, bytes]] = SourceQueue()
        self._flights = Budget(FLIGHTS_PER_SECOND.pieces or 0)
        self._moves = Budget(MOVES_PER_SECOND.pieces or 0)
        self._answers = Budget(ANSWERS_PER_SECOND.pieces or 0)
        self.accepting = True
        """Whether new tunnels are taken."""

    @property
    def unresolved(self) -> int:
        """Number of clients whose ClientHello is not complete."""
        return len(self._waiting)

    def path_of(self, data: bytes, client: Address, now: float) -> Path | None:
        """The path on which to pass on a datagram of a client; None: it takes `receive` to know."""
        if not data:
            return None
        flow = self.flows.find(data, client)
        if flow is None:
            return None
        path = flow.paths.get(client)
        if path is not None:
            self.flows.heard(flow, path, data, now)
        return path

    def receive(self, data: bytes, client: Address, now: float) -> Sequence[Action]:
        """What to do with a datagram of a client for which `path_of` found no path."""
        if not data:
            return self._drop(Dropped.UNKNOWN_FLOW)
        flow = self.flows.find(data, client)
        if flow is not None:
            return self._moved(flow, data, client, now)
        if not data[0] & 0x80:
            return self._other_id(data, client, now)
        key = (client, destination_cid(data))
        waiting = self._waiting.get(key)
        if waiting is not None and not waiting.flight.full:
            return self._collect(key, waiting.flight, data, now)
        if not self._refusals.starts_connection(data):
            return self._answer(self._refusals.answer_version(data), client, now) or self._drop(Dropped.UNKNOWN_FLOW)
        if waiting is not None:
            self._give_up(key, "it takes too many datagrams")
        return self._begin(key, data, now)

    def receive_from_router(self, path: Path, data: bytes, now: float) -> None:
        """A router has sent a datagram on `path`; it is passed on to `path.client`."""
        self.flows.answered(path, data, now)

    def lost(self, path: Path) -> list[Action]:
        """The router cannot be reached on `path`, or its socket could not be made: the path ends, and its flow if it has no other."""
        flow = path.flow
        if flow.paths.get(path.client) is not path:
            return []
        if len(flow.paths) == 1:
            return self._end(flow, Outcome.RELAY_ERROR, "router cannot be reached")
        self.flows.remove_path(path)
        return [Close(path)]

    def expire(self, now: float) -> list[Action]:
        """End what has run out of time; to be called about every second."""
        actions: list[Action] = []
        for key, waiting in list(self._waiting.items()):
            if now - waiting.since < FLIGHT_S:
                break
            self._give_up(key, "it does not come to an end")
        for flow, outcome in self.flows.expired(now, idle_s=self._idle_s, handshake_s=HANDSHAKE_S):
            actions += self._end(flow, outcome, "idle" if outcome is Outcome.COMPLETED else "no answer of the router")
        for path in self.flows.left_paths(now):
            self.flows.remove_path(path)
            actions.append(Close(path))
        return actions

    def end_all(self) -> list[Action]:
        """Forget everything."""
        for key in list(self._waiting):
            self._give_up(key, "shutdown")
        return [action for flow in self.flows.all() for action in self._end(flow, Outcome.COMPLETED, "shutdown")]

    # --- first flights -----------------------------------------------------------------------------------------------

    def _begin(self, key: tuple[Address, bytes], data: bytes, now: float) -> Sequence[Action]:
        client, connection_id = key
        if not self.accepting:
            return self._refuse(data, SHUTTING_DOWN, client, now)
        if not self._flights.spend(now):
            return self._drop(Dropped.TOO_MANY)
        return self._collect(key, FirstFlight(connection_id), data, now)

    def _collect(self, key: tuple[Address, bytes], flight: FirstFlight, data: bytes, now: float) -> Sequence[Action]:
        known = key in self._waiting
        try:
            resolved = flight.add(data)
        except FirstFlightError as error:
            if known:
                self._give_up(key, error.reason)
            return self._drop(Dropped.MALFORMED)
        if resolved is None:
            if not known:
                self._wait(key, flight, now)
            return ()
        if known:
            self._forget(key)
        return self._route(key, flight, resolved, now)

    def _wait(self, key: tuple[Address, bytes], flight: FirstFlight, now: float) -> None:
        source = source_of(key[0][0])
        expendable = self._expendable(source)
        if expendable is not None:
            self._give_up(expendable, "too many others")
        self._waiting[key] = _Waiting(flight, now)
        self._sources.add(key, source)

    def _expendable(self, source: Source) -> tuple[Address, bytes] | None:
        if self._sources.at_address(source) >= (FLIGHTS_OF_ADDRESS.pieces or 0):
            return self._sources.oldest_at_address(source)
        return self._sources.most_expendable() if len(self._sources) >= (FLIGHTS.pieces or 0) else None

    def _give_up(self, key: tuple[Address, bytes], reason: str) -> None:
        self._forget(key)
        self._events.outcome(Outcome.UNRESOLVED, key[0], reason)

    def _forget(self, key: tuple[Address, bytes]) -> None:
        del self._waiting[key]
        self._sources.discard(key)

    def _route(self, key: tuple[Address, bytes], flight: FirstFlight, found: Resolved, now: float) -> list[Action]:
        client = key[0]
        first, name = flight.datagrams[0], found.server_name
        if name is None:
            return self._refused(Outcome.MISSING_SNI, first, MISSING_SNI, client, "", now)
        target = self._resolve(name)
        if target is NoTarget.UNKNOWN_NAME:
            return self._refused(Outcome.UNKNOWN_SNI, first, UNKNOWN_SNI, client, name, now)
        if target is NoTarget.NOT_READY:
            return self._refused(Outcome.TARGET_UNAVAILABLE, first, NOT_READY, client, name, now)
        return self._add(Outcome.ACCEPTED, name, target, key, flight.datagrams, now)

    def _add(
        self,
        outcome: Outcome,
        detail: str,
        target: Target,
        key: tuple[Address, bytes],
        datagrams: Sequence[bytes],
        now: float,
    ) -> list[Action]:
        actions: list[Action] = []
        for flow, end in self.flows.place(now):
            actions += self._end(flow, end, "made way for another tunnel")
        if self.flows.full:
            self._events.outcome(Outcome.RELAY_ERROR, key[0], "no place for another tunnel")
            return actions
        path = self.flows.add(target, *key, now)
        self._events.outcome(outcome, key[0], detail)
        return [*actions, Open(path), Forward(path, datagrams)]

    # --- datagrams of known clients ----------------------------------------------------------------------------------

    def _moved(self, flow: Flow, data: bytes, client: Address, now: float) -> list[Action]:
        """A connection id that the router chose, from another address than before."""
        if not flow.confirmed:
            # RFC 9000 section 9: no migration before the handshake is confirmed.
            self._events.dropped(Dropped.UNKNOWN_FLOW)
            return []
        if not self._moves.spend(now):
            self._events.dropped(Dropped.TOO_MANY)
            return []
        actions: list[Action] = []
        spare = self.flows.spare(flow)
        if spare is not None:
            self.flows.remove_path(spare)
            actions.append(Close(spare))
        path = self.flows.move(flow, client, now)
        if path is None:
            self._events.dropped(Dropped.TOO_MANY)
            return actions
        self.flows.heard(flow, path, data, now)
        return [*actions, Open(path), Forward(path, (data,))]

    def _other_id(self, data: bytes, client: Address, now: float) -> Sequence[Action]:
        """A connection id that the router may have issued inside of the encryption (NEW_CONNECTION_ID), or that another replica knows.

        It goes to the router of its tag. Without a tag it goes to the router that the client uses; with several of them each
        gets it: the others cannot decrypt it and drop it.
        """
        tag = tag_in(data)
        tagged = () if tag is None else self._tagged(tag)
        flows = self.flows.at(client)
        flows = [flow for flow in flows if flow.target in tagged] or flows
        if not flows:
            return self._adopt(tagged, data, client, now)
        for flow in flows:
            self.flows.heard(flow, flow.paths[client], data, now)
        return [Forward(flow.paths[client], (data,)) for flow in flows]

    def _adopt(self, tagged: Sequence[Target], data: bytes, client: Address, now: float) -> Sequence[Action]:
        """Relay a tunnel that began at another replica; its router sees a new path and validates it (RFC 9000 section 9)."""
        if len(tagged) != 1 or not self.accepting:
            return self._drop(Dropped.UNKNOWN_FLOW)
        if not self._moves.spend(now):
            return self._drop(Dropped.TOO_MANY)
        connection_id = data[1 : 1 + CID_BYTES]
        return self._add(Outcome.ADOPTED, "by its tag", tagged[0], (client, connection_id), (data,), now)

    # --- answers -----------------------------------------------------------------------------------------------------

    def _refused(
        self, outcome: Outcome, first: bytes, reason: str, client: Address, name: str, now: float
    ) -> list[Action]:
        self._events.outcome(outcome, client, name)
        return self._refuse(first, reason, client, now)

    def _refuse(self, first: bytes, reason: str, client: Address, now: float) -> list[Action]:
        return self._answer(self._refusals.refuse(first, CONNECTION_REFUSED, reason), client, now)

    def _answer(self, data: bytes | None, client: Address, now: float) -> list[Action]:
        return [Answer(data, client)] if data is not None and self._answers.spend(now) else []

    def _drop(self, reason: Dropped) -> Sequence[Action]:
        self._events.dropped(reason)
        return ()

    def _end(self, flow: Flow, outcome: Outcome, detail: str) -> list[Action]:
        client = next(iter(flow.paths))
        paths = self.flows.remove(flow)
        self._events.outcome(outcome, client, detail)
        return [Close(path) for path in paths]
