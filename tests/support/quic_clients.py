"""Workers and routers as plain aioquic connections without sockets, for a `RelayCore` between them."""

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.events import ConnectionTerminated, QuicEvent
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from kubernetes_router.relay.core import Action, Answer, Close, Forward, Open, RelayCore
from kubernetes_router.relay.flows import Path, Target
from kubernetes_router.relay.outcomes import Dropped, Outcome
from kubernetes_router.targets import NoTarget
from support.quic_endpoints import IDENTITY
from tunnel_protocol.quic.aioquic_handshake import AioquicFactory
from tunnel_protocol.quic.engine import Address
from tunnel_protocol.quic.pod_tag import pod_tag
from tunnel_protocol.quic.settings import QuicSettings

POD: Target = ("10.0.0.1", 50_072)
OTHER_POD: Target = ("10.0.0.2", 50_072)
WORKER: Address = ("192.0.2.1", 40_000)


def client(server_name: str | None = "a", **options: Any) -> QuicConnection:
    """A worker's connection that has begun its handshake; a long ALPN makes its ClientHello long."""
    configuration = QuicConfiguration(is_client=True, server_name=server_name, **options)
    configuration.verify_mode = 0
    return QuicConnection(configuration=configuration)


def first_flight(server_name: str | None = "a", *, long: bool = False, now: float = 0.0) -> list[bytes]:
    """The first datagrams of a worker; two of them if `long`."""
    alpn = [f"protocol-{number:03}" for number in range(120)] if long else None
    connection = client(server_name, alpn_protocols=alpn)
    connection.connect(POD, now)
    return [data for data, _ in connection.datagrams_to_send(now)]


class RouterPod:
    """A router: a connection per path."""

    def __init__(self, **options: Any) -> None:
        self._configuration = QuicConfiguration(is_client=False, **options)
        self._configuration.certificate = x509.load_pem_x509_certificate(IDENTITY.cert_pem)
        self._configuration.private_key = load_pem_private_key(IDENTITY.key_pem, None)
        self.connections: list[QuicConnection] = []
        self.events: list[QuicEvent] = []

    def receive(self, data: bytes, port: int, now: float) -> None:
        """A datagram has arrived from `port` of the relay."""
        if not self.connections:
            original = data[6 : 6 + data[5]]
            self.connections.append(
                QuicConnection(configuration=self._configuration, original_destination_connection_id=original)
            )
            if not self._configuration.connection_id_length:
                self.connections[0]._replenish_connection_ids = lambda: None  # type: ignore[method-assign]
        self.connections[0].receive_datagram(data, ("relay", port), now)

    def sent(self, now: float) -> list[tuple[bytes, int]]:
        """Datagrams to send, and the port of the relay they go to."""
        found = []
        for connection in self.connections:
            found += [(data, to[1]) for data, to in connection.datagrams_to_send(now)]
            while (event := connection.next_event()) is not None:
                self.events.append(event)
        return found


@dataclass
class PlayedRelay:
    """A core whose actions are recorded, with the sockets that it asked for."""

    names: dict[str, Target | NoTarget] = field(default_factory=lambda: {"a": POD, "b": OTHER_POD})
    idle_s: float = 300.0
    limits: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.outcomes: Counter[Outcome] = Counter()
        self.details: list[str] = []
        self.drops: Counter[Dropped] = Counter()
        self.open: dict[Path, int] = {}
        """Open paths, and the port of the socket of each."""
        self.forwarded: deque[tuple[Path, bytes]] = deque()
        self.answers: list[tuple[bytes, Address]] = []
        self.ports = 0
        factory = AioquicFactory(QuicSettings(), None)
        self.core = RelayCore(self._resolve, self._tagged, factory, self, idle_s=self.idle_s, **self.limits)

    def _resolve(self, name: str) -> Target | NoTarget:
        return self.names.get(name, NoTarget.UNKNOWN_NAME)

    def _tagged(self, tag: bytes) -> list[Target]:
        return [at for name, at in self.names.items() if pod_tag(name) == tag and not isinstance(at, NoTarget)]

    def outcome(self, outcome: Outcome, client: Address, detail: str) -> None:
        self.outcomes[outcome] += 1
        self.details.append(detail)

    def dropped(self, reason: Dropped) -> None:
        self.drops[reason] += 1

    def receive(self, data: bytes, address: Address = WORKER, now: float = 0.0) -> None:
        """A datagram of a worker."""
        path = self.core.path_of(data, address, now)
        if path is not None:
            assert path in self.open
            self.forwarded.append((path, data))
        else:
            self.act(self.core.receive(data, address, now))

    def act(self, actions: Any) -> None:
        action: Action
        for action in actions:
            if isinstance(action, Open):
                self.ports += 1
                self.open[action.path] = self.ports
            elif isinstance(action, Forward):
                self.forwarded += [(action.path, data) for data in action.datagrams]
            elif isinstance(action, Answer):
                self.answers.append((action.data, action.client))
            else:
                assert isinstance(action, Close)
                del self.open[action.path]

    def taken(self) -> list[tuple[Path, bytes]]:
        """What was passed on since the last call."""
        found = list(self.forwarded)
        self.forwarded.clear()
        return found


class Conversation:
    """A worker and its routers with a relay between them; `address` is where the worker sends from."""

    def __init__(self, relay: PlayedRelay, worker: QuicConnection, pods: dict[Target, RouterPod]) -> None:
        self.relay = relay
        self.worker = worker
        self.pods = pods
        self.address = WORKER
        self.now = 0.0
        self.events: list[QuicEvent] = []
        self.tamper: Callable[[bytes], bytes | None] = lambda data: data
        """Changes or loses a datagram of a router."""

    def play(self, turns: int = 12, step_s: float = 0.01) -> None:
        """Pass datagrams both ways for some turns."""
        for _ in range(turns):
            self.now += step_s
            timer = self.worker.get_timer()
            if timer is not None and timer <= self.now:
                self.worker.handle_timer(self.now)
            for data, _ in self.worker.datagrams_to_send(self.now):
                self.relay.receive(data, self.address, self.now)
            for path, data in self.relay.taken():
                self.pods[path.flow.target].receive(data, self.relay.open[path], self.now)
            for pod in self.pods.values():
                for data, port in pod.sent(self.now):
                    self._to_worker(data, port)
            for data, _ in self.relay.answers:
                self.worker.receive_datagram(data, POD, self.now)
            self.relay.answers.clear()
            while (event := self.worker.next_event()) is not None:
                self.events.append(event)

    def _to_worker(self, data: bytes, port: int) -> None:
        path = next((path for path, number in self.relay.open.items() if number == port), None)
        changed = self.tamper(data)
        if path is None or changed is None:
            return
        self.relay.core.receive_from_router(path, changed, self.now)
        if path.client == self.address:
            self.worker.receive_datagram(changed, POD, self.now)

    def begin(self) -> None:
        """Start the handshake."""
        self.worker.connect(POD, self.now)

    def closed(self) -> ConnectionTerminated | None:
        """How the worker's connection has ended."""
        return next((event for event in self.events if isinstance(event, ConnectionTerminated)), None)
