"""Two engines in memory on a virtual clock, with a network between them that loses, delays, reorders and duplicates."""

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import certs
from tunnel_protocol.errors import ConnectionClosedError
from tunnel_protocol.quic.aioquic_handshake import AioquicFactory
from tunnel_protocol.quic.engine import destination_cid
from tunnel_protocol.quic.settings import QuicSettings
from tunnel_protocol.quic.stream_interface import StreamHandler
from tunnel_protocol.quic.tls import ClientTls, ServerTls

Address = tuple[str, int]
CLIENT_ADDRESS = ("192.0.2.1", 40000)
SERVER_ADDRESS = ("192.0.2.2", 50072)


@cache
def identity() -> certs.Identity:
    return certs.make_self_signed(["stargate"])


def datagrams_of(runs: list[tuple[bytes, int, Any]]) -> list[tuple[bytes, Any]]:
    """The datagrams of runs, each with its address."""
    return [
        (data[at : at + (segment or len(data))], address)
        for data, segment, address in runs
        for at in range(0, len(data), segment or len(data))
    ]


@dataclass
class SimulatedNetwork:
    """What the network does to each datagram."""

    loss: float = 0.0
    duplication: float = 0.0
    delay_s: float = 0.01
    jitter_s: float = 0.0
    mtu: int = 1_500
    bytes_per_s: float = float("inf")
    buffer_s: float = 0.05
    """What the bottleneck queues before it drops."""
    drop: Callable[[str, bytes], bool] | None = None
    """`drop(sender_name, data) -> bool`, asked first."""


class Node:
    """One side: an engine, its owner, and everything that happened."""

    def __init__(self, world: "World", name: str, address: Address) -> None:
        self.world = world
        self.name = name
        self.address = address
        self.engine: Any = None
        self.cids: set[bytes] = set()
        self.established = False
        self.error: ConnectionClosedError | None = None
        self.accept: Callable[[Any], Any] = lambda _: None
        self.credit = 0
        self.on_credit: Callable[[], object] = lambda: None
        self.timer: float | None = None
        self.stale = 0

    # EngineCallbacks
    def on_work(self) -> None:
        self.world.pending[self] = None

    def on_established(self) -> None:
        self.established = True

    def on_peer_stream(self, stream: Any) -> Any:
        return self.accept(stream)

    def on_stream_credit(self) -> None:
        self.credit += 1
        self.on_credit()

    def on_connection_id(self, connection_id: bytes) -> None:
        self.cids.add(connection_id)

    def on_connection_id_retired(self, connection_id: bytes) -> None:
        self.cids.discard(connection_id)

    def on_closed(self, error: ConnectionClosedError) -> None:
        assert self.error is None, "told twice"
        self.error = error

    def tick(self) -> None:
        """What the endpoint does with a connection that was touched."""
        world = self.world
        self.engine.deliver()
        for data, address in datagrams_of(self.engine.poll(world.now)):
            world.send(self, data, address)
        at = self.engine.deadline()
        self.timer = at


class World:
    """Client and server, connected by `connect`."""

    def __init__(
        self,
        seed: int = 0,
        weather: SimulatedNetwork | None = None,
        client_settings: QuicSettings | None = None,
        server_settings: QuicSettings | None = None,
    ) -> None:
        self.random = random.Random(seed)
        self.weather = weather or SimulatedNetwork()
        self.now = 1_000.0
        self.queue: list[tuple[Any, ...]] = []
        self.sequence = 0
        self.pending: dict[Node, None] = {}
        self.client = Node(self, "client", CLIENT_ADDRESS)
        self.server = Node(self, "server", SERVER_ADDRESS)
        self.client_settings = client_settings or QuicSettings()
        self.server_settings = server_settings or QuicSettings()
        self.server_factory = AioquicFactory(self.server_settings, ServerTls(identity().cert_pem, identity().key_pem))
        self.client_factory = AioquicFactory(self.client_settings, None)
        self.datagrams = 0
        self.largest = 0
        self.free_at: dict[str, float] = {}

    def send(self, sender: Node, data: bytes, address: Address) -> None:
        self.datagrams += 1
        self.largest = max(self.largest, len(data))
        weather, rng = self.weather, self.random
        if weather.drop is not None and weather.drop(sender.name, data):
            return
        if len(data) > weather.mtu or rng.random() < weather.loss:
            return
        copies = 2 if rng.random() < weather.duplication else 1
        free_at = max(self.free_at.get(sender.name, 0.0), self.now)
        if free_at - self.now > weather.buffer_s:
            return
        self.free_at[sender.name] = free_at = free_at + len(data) / weather.bytes_per_s
        for _ in range(copies):
            self.sequence += 1
            at = free_at + weather.delay_s + rng.random() * weather.jitter_s
            heapq.heappush(self.queue, (at, self.sequence, sender.name, sender.address, address, data))

    def later(self, delay_s: float, call: Callable[[], object]) -> None:
        """Have something happen at its own time."""
        self.sequence += 1
        heapq.heappush(self.queue, (self.now + delay_s, self.sequence, call))

    def start(self) -> None:
        tls = ClientTls(identity().cert_pem, "stargate")
        self.client.engine = self.client_factory.connect(SERVER_ADDRESS, tls, self.client, self.now)
        self.client.tick()

    def connect(self) -> "World":
        self.start()
        self.run(lambda: self.client.established and self.server.established, 20)
        return self

    def run(self, until: Callable[[], object], deadline_s: float, *, must: bool = True) -> bool:
        """Let time pass until the condition holds."""
        end = self.now + deadline_s
        while not until():
            if not self.step(end):
                assert not must, f"not reached within {deadline_s} virtual seconds"
                return False
        return True

    def idle(self, seconds: float) -> None:
        self.run(lambda: False, seconds, must=False)

    def step(self, end: float) -> bool:
        """The next thing that happens; False if nothing does before `end`."""
        if self.pending:
            pending, self.pending = self.pending, {}
            for touched in pending:
                touched.tick()
            return True
        at = self.queue[0][0] if self.queue else None
        node: Node | None = None
        for candidate in (self.client, self.server):
            if candidate.engine is not None and candidate.timer is not None and not candidate.engine.finished:
                # Timers of event loops are no finer than this.
                timer = max(candidate.timer, self.now + 0.001)
                if at is None or timer < at:
                    at, node = timer, candidate
        if at is None or at > end:
            self.now = max(self.now, end)
            return False
        self.now = max(self.now, at)
        if node is not None:
            node.engine.handle_timer(self.now)
            node.tick()
            # A few in a row are rounding, and timers of several kinds that are due together.
            node.stale = node.stale + 1 if node.timer is not None and node.timer <= self.now else 0
            assert node.stale < 10, "a timer that would fire again and again"
        else:
            _, _, *what = heapq.heappop(self.queue)
            if len(what) == 1:
                what[0]()
            else:
                self.deliver(*what)
        return True

    def deliver(self, sender_name: str, source: Address, address: Address, data: bytes) -> None:
        node = self.server if sender_name == "client" else self.client
        if address != node.address and sender_name == "server":
            return  # sent to where the client is no longer
        if node.engine is None:
            if self.server_factory.starts_connection(data):
                node.engine = self.server_factory.accept(data, source, node, self.now)
                if node.engine is not None:
                    node.tick()
            return
        if destination_cid(data) in node.cids:
            node.engine.receive(data, source, self.now)
            node.tick()


class WrongCallError(BaseException):
    """A stream told its handler what it should not have; no Exception, which an engine takes for a fault of the handler."""


def must(condition: object, rule: str) -> None:
    """An assertion for handlers."""
    if not condition:
        raise WrongCallError(rule)


class StreamRecorder(StreamHandler):
    """A stream handler that keeps everything and checks the order of calls."""

    def __init__(self) -> None:
        self.stream: Any = None
        self.received = bytearray()
        self.fin = False
        self.reset: int | None = None
        self.stopped: int | None = None
        self.lost: ConnectionClosedError | None = None
        self.writable = 0
        self.on_piece: Callable[[], object] = lambda: None

    def on_data(self, data: bytes, fin: bool) -> None:
        must(type(data) is bytes, "bytes and nothing like them")
        must(not self.fin, "no data after FIN")
        must(self.reset is None, "no data after a reset")
        must(self.lost is None, "no data after the connection")
        must(data or fin, "no empty calls")
        self.received += data
        self.fin = fin
        self.on_piece()

    def on_reset(self, error_code: int) -> None:
        must(not self.fin, "no reset after FIN")
        must(self.reset is None, "one reset")
        self.reset = error_code

    def on_stop(self, error_code: int) -> None:
        must(self.stopped is None, "one stop")
        self.stopped = error_code

    def on_writable(self) -> None:
        self.writable += 1

    def on_connection_lost(self, error: ConnectionClosedError) -> None:
        must(self.lost is None, "one end")
        self.lost = error


@dataclass
class Leftovers:
    """What an engine still holds; all zero when every stream is over and acknowledged."""

    streams: int = 0
    marks: int = 0
    unacknowledged: int = 0
    in_flight: int = 0
    details: list[Any] = field(default_factory=list)

    @classmethod
    def of(cls, engine: Any) -> "Leftovers":
        one_rtt = engine.one_rtt
        table = one_rtt.table
        return cls(
            len(table.streams),
            len(table.sending) + len(table.control) + len(table.ready) + len(table.connection_blocked),
            len(one_rtt.recovery.sent),
            one_rtt.congestion.in_flight,
            [(s.stream_id, s.send_half.state, s.receive_half.state) for s in table.streams.values()],
        )


def nothing_left(engine: Any) -> bool:
    return Leftovers.of(engine) == Leftovers()


def sealed(engine: Any, payload: bytes) -> bytes:
    """A datagram of `engine` with any payload, which it forgets: what a peer sends that keeps to no rules."""
    datagram: bytes = engine.one_rtt.writer.untracked(payload)[0]
    return datagram
