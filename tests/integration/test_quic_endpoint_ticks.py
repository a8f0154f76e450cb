"""The endpoint with an engine that does as it is told: credit and cancellation in one instant, faults, timers, a full socket."""

import asyncio
import errno
import socket

import pytest

from tunnel_protocol.errors import ConnectionClosedError
from tunnel_protocol.quic.connection import Connection
from tunnel_protocol.quic.datagrams import Datagrams
from tunnel_protocol.quic.endpoint import Endpoint, TickState
from tunnel_protocol.quic.engine import Engine
from tunnel_protocol.quic.first_packets import ACCEPTS_PER_TURN
from tunnel_protocol.quic.settings import QuicSettings
from tunnel_protocol.quic.stream_interface import Stream, StreamHandler
from tunnel_protocol.quic.tls import ClientTls
from tunnel_protocol.quic.udp import UdpSocket

CID = b"12345678"
HELLO = b"\xc3\x00\x00\x00\x01\x08" + b"original" + b"\x04peer" + b"\x00\x44\x80" + bytes(1_170)
"""Looks like a client's first datagram."""
TLS = ClientTls(None, "stargate", insecure=True)


class Handed(Stream):
    """A stream that only remembers what was done to it."""

    def __init__(self):
        super().__init__(0)
        self.calls = []

    def reset(self, error_code=0):
        self.calls.append("reset")

    def stop(self, error_code=0):
        self.calls.append("stop")


class PlayedEngine(Engine):
    """A test sets what it does next."""

    peer_address = ("127.0.0.1", 1)
    server_name = None
    smoothed_rtt_ms = 1.5
    open_streams = 0
    established = closed = finished = None  # attributes, where `Engine` has properties
    free_streams = None

    def __init__(self, owner):
        self.owner = owner
        self.established = self.closed = self.finished = False
        self.free_streams = 0
        self.received, self.outgoing, self.calls = [], [], []
        self.at = None
        self.fault_in = None

    def _maybe(self, name):
        self.calls.append(name)
        if self.fault_in == name:
            self.fault_in = None
            raise ZeroDivisionError

    def receive(self, data, address, now):
        self._maybe("receive")
        self.received.append(data)

    def deliver(self):
        self._maybe("deliver")

    def poll(self, now):
        self._maybe("poll")
        outgoing, self.outgoing = self.outgoing, []
        return [(data, 0, address) for data, address in outgoing]

    def deadline(self):
        return self.at

    def handle_timer(self, now):
        self.calls.append("timer")
        self.at = None

    def open_stream(self, handler):
        if not self.free_streams:
            return None
        self.free_streams -= 1
        return Handed()

    def ping(self):
        self.calls.append("ping")

    def datagram_refused(self, size, now):
        self.calls.append(f"refused {size}")

    def is_reset(self, data):
        return data.endswith(b"reset token of it")

    def shutdown(self, error_code, reason):
        self.closed = True
        self.owner.on_closed(ConnectionClosedError(error_code, reason, by_peer=False))

    def abandon(self, error):
        if not self.closed:
            self.closed = self.finished = True
            self.owner.on_closed(error)

    def discard(self): ...


class Factory:
    """Implements `EngineFactory`."""

    def __init__(self):
        self.engines = []
        self.fault = None
        self.closed = False

    reset_key = b"key of resets"

    def _make(self, owner):
        if self.fault is not None:
            raise self.fault
        engine = PlayedEngine(owner)
        owner.on_connection_id(CID)
        self.engines.append(engine)
        return engine

    def connect(self, address, tls, owner, now):
        return self._make(owner)

    def accept(self, data, address, owner, now, original_cid):
        return None if data.endswith(b"nonsense") else self._make(owner)

    def starts_connection(self, data):
        return data.startswith(HELLO[:6])

    def answer_version(self, data):
        return None

    def refuse(self, data, error_code):
        return b"refused" if data.endswith(b"politely") else None

    def close(self):
        self.closed = True


class Owner:
    def __init__(self):
        self.error = None

    def on_stream(self, stream):
        return None

    def on_closed(self, error):
        self.error = error


class Rig:
    def __init__(self, settings=None, sock=None):
        self.factory = Factory()
        self.owner = Owner()
        self.failed = []
        self.udp = UdpSocket(sock, datagrams=Datagrams) if sock else UdpSocket.bind("127.0.0.1", 0)
        self.endpoint = Endpoint(
            self.udp,
            settings or QuicSettings(),
            self.factory,
            lambda _: self.owner,
            lambda *one: self.failed.append(one),
        )
        self.outside = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)

    @property
    def engine(self):
        return self.factory.engines[-1]

    def send(self, data):
        self.outside.sendto(data, self.endpoint.local_address)

    async def until(self, condition):
        async with asyncio.timeout(5):
            while not condition():  # noqa: ASYNC110 - the engine is called by the loop
                await asyncio.sleep(0)

    async def accepted(self):
        self.send(HELLO)
        await self.until(lambda: self.factory.engines)
        self.engine.established = True
        self.engine.owner.on_established()
        return self.engine.owner

    async def dialled(self):
        dialling = asyncio.create_task(self.endpoint.connect("127.0.0.1", 1, TLS, self.owner, 5))
        await self.until(lambda: self.factory.engines)
        self.engine.established = True
        self.engine.owner.on_established()
        return await dialling


@pytest.fixture
async def rig(request):
    """A rig; with the socket of the test, if it asks for one."""
    rig = Rig(sock=request.getfixturevalue("sock") if "sock" in request.fixturenames else None)
    yield rig
    rig.outside.close()
    await rig.endpoint.close()


async def waiting_opener(connection):
    opener = asyncio.create_task(connection.open_stream(StreamHandler()))
    while not len(connection._waiting):  # noqa: ASYNC110 - it is a step away
        await asyncio.sleep(0)
    return opener


async def test_a_stream_opened_for_somebody_who_left_in_the_same_instant_is_given_back(rig):
    connection = await rig.dialled()
    handed = Handed()
    rig.engine.open_stream = lambda _: handed if rig.engine.free_streams else None
    opener = await waiting_opener(connection)
    rig.engine.free_streams = 1
    connection.on_stream_credit()
    opener.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opener
    assert handed.calls == ["reset", "stop"]


async def test_credit_passes_over_somebody_who_has_just_left(rig):
    connection = await rig.dialled()
    first, second = await waiting_opener(connection), asyncio.create_task(connection.open_stream(StreamHandler()))
    await rig.until(lambda: len(connection._waiting) == 2)
    rig.engine.free_streams = 1
    first.cancel()
    connection.on_stream_credit()
    assert await second
    with pytest.raises(asyncio.CancelledError):
        await first
    assert len(connection._waiting) == 0


async def test_credit_for_fewer_than_wait_goes_to_the_first(rig):
    connection = await rig.dialled()
    first, second = await waiting_opener(connection), asyncio.create_task(connection.open_stream(StreamHandler()))
    await rig.until(lambda: len(connection._waiting) == 2)
    rig.engine.free_streams = 1
    connection.on_stream_credit()
    assert await first
    assert len(connection._waiting) == 1
    second.cancel()


async def test_a_dialled_connection_that_ends_as_soon_as_it_is_there_was_never_there(rig):
    dialling = asyncio.create_task(rig.endpoint.connect("127.0.0.1", 1, TLS, rig.owner, 5))
    await rig.until(lambda: rig.factory.engines)
    rig.engine.owner.on_established()
    rig.engine.owner.close(9, "changed my mind")
    with pytest.raises(ConnectionClosedError, match="changed my mind"):
        await dialling
    assert rig.owner.error is None, "its handler never had it"


async def test_a_dialled_connection_that_is_not_there_in_time_is_none_its_handler_hears_of(rig):
    with pytest.raises(TimeoutError):
        await rig.endpoint.connect("127.0.0.1", 1, TLS, rig.owner, 0.01)
    assert rig.engine.closed
    assert rig.owner.error is None


async def test_an_incoming_connection_that_ends_before_it_is_there_is_told_to_whom_failures_are_told(rig):
    rig.send(HELLO)
    await rig.until(lambda: rig.factory.engines)
    rig.engine.abandon(ConnectionClosedError(0x128, "bad certificate", by_peer=True))
    assert [error.reason for _, error in rig.failed] == ["bad certificate"]
    assert rig.owner.error is None


async def test_an_incoming_connection_that_takes_too_long_is_given_up():
    rig = Rig(QuicSettings(handshake_timeout_ms=20))
    rig.send(HELLO)
    await rig.until(lambda: rig.failed)
    assert [error.reason for _, error in rig.failed] == ["handshake timed out"]
    await rig.until(lambda: not rig.endpoint._connections)
    rig.outside.close()
    await rig.endpoint.close()


async def test_credit_beyond_those_who_wait_stays_where_it_is(rig):
    connection = await rig.dialled()
    opener = await waiting_opener(connection)
    rig.engine.free_streams = 3
    connection.on_stream_credit()
    assert await opener
    assert connection.free_streams == 2
    assert connection.try_open_stream(StreamHandler())


async def test_the_end_of_a_connection_reaches_those_who_wait_and_not_who_left(rig):
    connection = await rig.dialled()
    first, second = await waiting_opener(connection), asyncio.create_task(connection.open_stream(StreamHandler()))
    ends = [asyncio.create_task(connection.wait_closed()) for _ in range(2)]
    await rig.until(lambda: len(connection._waiting) == 2)
    first.cancel()
    connection.close(7, "over")
    with pytest.raises(ConnectionClosedError):
        await second
    assert [await end for end in ends] == [connection.error] * 2
    assert rig.owner.error is connection.error
    connection.ping()
    assert "ping" not in rig.engine.calls


async def test_a_ping_is_passed_on_while_there_is_a_connection(rig):
    (await rig.dialled()).ping()
    assert "ping" in rig.engine.calls


@pytest.mark.parametrize("where", ["receive", "deliver", "poll"])
async def test_a_fault_of_ours_costs_the_connection_it_served_and_no_other(rig, where):
    connection = await rig.accepted()
    rig.engine.fault_in = where
    rig.send(b"\x40" + CID + b"data")
    await rig.until(lambda: connection.error)
    assert connection.error.reason == "internal error"
    await rig.until(lambda: not rig.endpoint._connections)
    assert isinstance(await rig.accepted(), Connection)


class Observer:
    """Notes ticks among the calls of an engine."""

    def __init__(self, calls, fault=None):
        self.calls = calls
        self.fault = fault

    def tick_begins(self):
        self.calls.append("tick begins")

    def tick_ends(self):
        self.calls.append("tick ends")
        if self.fault is not None:
            raise self.fault


async def test_an_observer_is_told_before_handlers_are_called_and_before_anything_is_sent(rig):
    await rig.accepted()
    calls = rig.engine.calls
    rig.endpoint.observe_ticks(Observer(calls))
    calls.clear()
    rig.send(b"\x40" + CID + b"data")
    await rig.until(lambda: "poll" in calls)
    assert calls[:5] == ["receive", "tick begins", "deliver", "tick ends", "poll"]


async def test_a_fault_of_the_observer_costs_no_tunnel(rig):
    connection = await rig.accepted()
    rig.endpoint.observe_ticks(Observer([], fault=ZeroDivisionError()))
    rig.engine.calls.clear()
    for _ in range(2):
        rig.send(b"\x40" + CID + b"data")
        await rig.until(lambda: "poll" in rig.engine.calls)
        rig.engine.calls.clear()
    assert connection.error is None


async def test_a_first_datagram_that_breaks_something_costs_itself(rig):
    rig.factory.fault = ZeroDivisionError()
    rig.send(HELLO)
    rig.send(HELLO + b" nonsense")
    await asyncio.sleep(0.01)
    assert rig.endpoint._connections == {}
    rig.factory.fault = None
    await rig.accepted()


async def test_whoever_comes_after_the_door_was_closed_is_told_where_there_are_words_for_it(rig):
    rig.endpoint.stop_accepting()
    rig.outside.setblocking(False)
    rig.send(HELLO)
    rig.send(HELLO + b" politely")
    answer = await asyncio.wait_for(asyncio.get_running_loop().sock_recv(rig.outside, 100), 5)
    assert answer == b"refused"
    assert rig.factory.engines == []


async def test_an_id_that_was_retired_leads_nowhere(rig):
    connection = await rig.accepted()
    connection.on_connection_id_retired(CID)
    connection.on_connection_id(b"abcdefgh")
    rig.send(b"\x40" + CID + b"old")
    rig.send(b"\x40abcdefgh" + b"new")
    await rig.until(lambda: rig.engine.received)
    assert rig.engine.received == [b"\x40abcdefghnew"]


async def test_a_timer_fires_at_its_time_not_before_and_not_when_it_was_taken_back(rig):
    connection = await rig.accepted()
    loop = asyncio.get_running_loop()
    began = loop.time()
    rig.engine.at = began + 0.02
    connection.arm(began)
    rig.engine.at = began + 0.06
    connection.arm(began)  # later: the armed one stays, and finds that it is too early
    await rig.until(lambda: "timer" in rig.engine.calls)
    assert loop.time() - began > 0.055
    rig.engine.calls.clear()
    rig.engine.at = loop.time() + 0.01
    connection.arm(loop.time())
    rig.engine.at = None
    connection.arm(loop.time())
    await asyncio.sleep(0.03)
    assert "timer" not in rig.engine.calls


async def test_an_earlier_deadline_moves_the_timer(rig):
    connection = await rig.accepted()
    loop = asyncio.get_running_loop()
    rig.engine.at = loop.time() + 60
    connection.arm(loop.time())
    rig.engine.at = loop.time() + 0.01
    connection.arm(loop.time())
    await asyncio.wait_for(rig.until(lambda: "timer" in rig.engine.calls), 2)


async def test_an_endpoint_that_was_closed_does_nothing_more(rig):
    connection = await rig.accepted()
    await rig.endpoint.close(3, "bye")
    await rig.endpoint.close(4, "again")
    assert (connection.error.error_code, connection.error.reason) == (3, "bye")
    assert rig.factory.closed
    rig.endpoint.schedule(connection)
    calls = len(rig.engine.calls)
    await asyncio.sleep(0)
    assert len(rig.engine.calls) == calls
    with pytest.raises(ConnectionClosedError, match="endpoint is closed"):
        await rig.endpoint.connect("127.0.0.1", 1, TLS, rig.owner, 1)


class FullSocket(socket.socket):
    """Takes nothing while `full`."""

    full = False

    def sendto(self, *args):
        if self.full:
            raise BlockingIOError(errno.EAGAIN, "full")
        return super().sendto(*args)


def a_full_socket():
    sock = FullSocket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))
    return sock


async def test_while_the_socket_is_full_nobody_is_asked_for_more_and_all_are_when_it_accepts_again():
    sock = a_full_socket()
    rig = Rig(sock=sock)
    rig.outside.bind(("127.0.0.1", 0))
    rig.outside.setblocking(False)
    to = rig.outside.getsockname()
    connection = await rig.accepted()
    await asyncio.sleep(0)
    sock.full = True
    rig.engine.outgoing = [(b"one", to)]
    rig.endpoint.schedule(connection)
    await rig.until(lambda: rig.udp.blocked)
    rig.engine.outgoing = [(b"two", to)]
    polls = rig.engine.calls.count("poll")
    rig.endpoint.schedule(connection)
    for _ in range(5):
        await asyncio.sleep(0)
    assert rig.engine.calls.count("poll") == polls
    sock.full = False
    loop = asyncio.get_running_loop()
    assert [await asyncio.wait_for(loop.sock_recv(rig.outside, 100), 5) for _ in range(2)] == [b"one", b"two"]
    assert not rig.endpoint._watching_writable
    sock.full = True
    rig.engine.outgoing = [(b"three", to)]
    rig.endpoint.schedule(connection)
    await rig.until(lambda: rig.udp.blocked)
    rig.outside.close()
    await asyncio.wait_for(rig.endpoint.close(), 5)


# --- first datagrams that wait ---------------------------------------------------------------------------------------


def first(n, token=b""):
    """A client's first datagram to an id of its own."""
    head = b"\xc3\x00\x00\x00\x01\x08" + b"id%06d" % n + b"\x04peer"
    return (head + bytes([len(token)]) + token).ljust(1_200, b"\0")


def crowd(rig, count, start=0):
    """First datagrams of clients that have proved their addresses."""
    host, port = rig.outside.getsockname()
    validation = rig.endpoint._admission._validation
    for n in range(start, count):
        rig.send(first(n, validation.token((host, port), b"original", b"id%06d" % n, rig.endpoint.loop.time())))


async def test_many_handshakes_begin_over_several_turns_of_the_loop(rig):
    rig.outside.bind(("127.0.0.1", 0))
    crowd(rig, 3 * ACCEPTS_PER_TURN)
    await rig.until(lambda: rig.factory.engines)
    assert len(rig.factory.engines) == ACCEPTS_PER_TURN
    assert len(rig.endpoint._first_packets) == 2 * ACCEPTS_PER_TURN
    crowd(rig, 3 * ACCEPTS_PER_TURN, ACCEPTS_PER_TURN)
    rig.endpoint._readable()
    await rig.until(lambda: len(rig.factory.engines) == 3 * ACCEPTS_PER_TURN)
    assert rig.engine.received[0][6:14] == b"id000023", "what came meanwhile is not lost"
    assert len(rig.endpoint._first_packets) == 0


async def test_a_first_datagram_that_makes_no_engine_does_not_hold_the_others_up(rig):
    rig.outside.bind(("127.0.0.1", 0))
    rig.factory.accept = lambda data, *_: None if b"id000009" in data else Factory._make(rig.factory, _[1])
    crowd(rig, ACCEPTS_PER_TURN + 3)
    await rig.until(lambda: len(rig.factory.engines) == ACCEPTS_PER_TURN + 2)
    assert len(rig.endpoint._first_packets) == 0


async def test_who_waits_when_the_endpoint_closes_is_forgotten(rig):
    rig.outside.bind(("127.0.0.1", 0))
    crowd(rig, 2 * ACCEPTS_PER_TURN)
    rig.endpoint._readable()
    assert rig.endpoint._first_packets
    await rig.endpoint.close()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert len(rig.factory.engines) == ACCEPTS_PER_TURN


async def test_a_fault_while_a_waiting_clients_datagrams_are_taken_costs_that_client(rig):
    rig.outside.bind(("127.0.0.1", 0))
    make = rig.factory._make

    def broken(owner):
        engine = make(owner)
        engine.fault_in = "receive"
        return engine

    crowd(rig, ACCEPTS_PER_TURN + 1)
    crowd(rig, ACCEPTS_PER_TURN + 1, ACCEPTS_PER_TURN)
    rig.endpoint._readable()
    rig.factory._make = broken
    await rig.until(lambda: len(rig.factory.engines) == ACCEPTS_PER_TURN + 1)
    assert rig.engine.closed


async def test_who_waits_while_the_last_place_is_taken_gets_none():
    rig = Rig(QuicSettings(max_connections=ACCEPTS_PER_TURN + 1))
    rig.outside.bind(("127.0.0.1", 0))
    crowd(rig, ACCEPTS_PER_TURN + 3)
    await rig.until(lambda: len(rig.factory.engines) > ACCEPTS_PER_TURN and not len(rig.endpoint._first_packets))
    assert len(rig.factory.engines) == ACCEPTS_PER_TURN + 1
    rig.outside.close()
    await rig.endpoint.close()


class FailingSocket(socket.socket):
    """Cannot be read, or cannot send anything large, for as long as a test wants."""

    failures = 0
    asked = 0
    largest = 65_535

    def recvfrom(self, size):
        self.asked += 1
        if self.failures:
            self.failures -= 1
            raise OSError(errno.ENOMEM, "as the test wants")
        return super().recvfrom(size)

    def sendto(self, data, address):
        if len(data) > self.largest:
            raise OSError(errno.EMSGSIZE, "as the test wants")
        return super().sendto(data, address)


@pytest.fixture
def sock():
    sock = FailingSocket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))
    return sock


async def test_a_socket_that_cannot_be_read_is_tried_again_with_pauses(rig, sock):
    sock.failures = 20
    began = rig.endpoint.loop.time()
    await rig.accepted()
    assert rig.endpoint.loop.time() - began > 4 * 0.05, "16 tries at once, then one per pause"


async def test_an_endpoint_that_closes_in_such_a_pause_does_not_read_again(rig, sock):
    sock.failures = 1_000
    rig.send(HELLO)
    await rig.until(lambda: sock.asked == 16)
    await rig.endpoint.close()
    loop = asyncio.get_running_loop()
    over = loop.time() + 0.1
    await rig.until(lambda: loop.time() > over)
    assert sock.asked == 16


async def test_a_datagram_that_the_interface_does_not_carry_is_told_to_its_connection(rig, sock):
    connection = await rig.accepted()
    sock.largest = 1_300
    for size in (1_301, 1_300):
        rig.engine.outgoing = [(bytes(size), rig.outside.getsockname())]
        connection.on_work()
        await rig.until(lambda: not rig.engine.outgoing)
    assert [call for call in rig.engine.calls if call.startswith("refused")] == ["refused 1301"]


async def test_a_tick_that_is_due_stays_due_while_waiting_clients_are_accepted(rig):
    rig.outside.bind(("127.0.0.1", 0))
    crowd(rig, ACCEPTS_PER_TURN + 1)
    rig.endpoint._readable()
    assert rig.endpoint._first_packets
    rig.endpoint._tick = TickState.PLANNED
    rig.endpoint._accept_waiting()
    assert rig.endpoint._tick is TickState.PLANNED
    assert not rig.endpoint._first_packets
    rig.endpoint._tick = TickState.IDLE
